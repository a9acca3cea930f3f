"""MM-Vet: open questions, graded by a judge; six capabilities and their combinations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from efficientllava.benchmarks.base import Benchmark, Outcome
from efficientllava.progress import Progress

if TYPE_CHECKING:
    from efficientllava.benchmarks.judge.client import Judging
    from efficientllava.benchmarks.mmvet.reading import Sample
    from efficientllava.benchmarks.predictions import Predictions

PREFIX = "v1_"
"""Ids begin with it, except in some files of answers."""


@dataclass(frozen=True)
class MMVet(Benchmark["Sample"]):
    """See `Benchmark`."""

    def read(self, source: str | Path, split: str, style: str) -> Sequence[Sample]:
        """See `Benchmark`."""
        from efficientllava.benchmarks.mmvet.reading import read_samples

        return read_samples(source, split)

    def question_id(self, record: Sample) -> str | int:
        """See `Benchmark`: the number behind `PREFIX`."""
        number = record.id.removeprefix(PREFIX)
        return int(number) if number.isdigit() else record.id

    def spelled(self, records: Sequence[Sample], texts: Mapping[str, str]) -> dict[str, str]:
        """See `Benchmark`: LLaVA's answer files leave out `PREFIX`."""
        known = {record.id for record in records}
        return {
            PREFIX + key if key not in known and PREFIX + key in known else key: text
            for key, text in texts.items()
        }

    def score(
        self,
        records: Sequence[Sample],
        predictions: Predictions,
        source: str | Path,
        judging: Judging | None,
        progress: Progress,
    ) -> Outcome:
        """See `Benchmark`: the judge grades every answer."""
        from efficientllava.benchmarks.judge.client import models_of
        from efficientllava.benchmarks.mmvet.grading import grade
        from efficientllava.benchmarks.mmvet.scores import score_grades

        texts = self.answers(records, predictions)
        judging = self.require_judge(judging, predictions)
        model, runs = judging.judge.settings.model, judging.runs
        grades = grade(records, texts, judging.judge, runs, progress)
        scores = score_grades(records, {key: graded["score"] for key, graded in grades.items()})
        malformed = sum(sum(graded["malformed"]) for graded in grades.values())
        names = models_of(name for graded in grades.values() for name in graded["model"])
        return self.outcome(
            {**scores, "malformed": malformed},
            {"asked": model, "models": names, "runs": runs},
            {f"{model}-grade-{runs}runs.json".replace("/", "_"): grades},
        )

    def score_judged(
        self, records: Sequence[Sample], predictions: Sequence[Predictions], runs: int | None
    ) -> Outcome:
        """See `Benchmark`: one grade file; grades of further questions are left out."""
        from efficientllava.benchmarks.judge.client import UNNAMED, models_of
        from efficientllava.benchmarks.mmvet.scores import grades_of, judged, score_grades
        from efficientllava.benchmarks.predictions import require_all

        (graded,) = predictions
        identifiers, rows = [record.id for record in records], graded.rows
        require_all(identifiers, rows, str(graded.source))
        known = set(identifiers)
        used = {key: row for key, row in rows.items() if key in known}
        scores = score_grades(records, grades_of(used, runs))
        if len(used) < len(rows):
            scores["notes"].append(f"{len(rows) - len(used)} grades of other questions unused")
        rest = [judged(row) for row in used.values()]
        names = models_of(name for each in rest for name in each.model)
        malformed = sum(sum(each.malformed) for each in rest)
        return self.outcome({**scores, "malformed": malformed}, {"models": names or [UNNAMED]})


MMVET = MMVet(
    name="mmvet",
    title="MM-Vet",
    splits=("test", "bard"),
    new_tokens=1024,
    digits=1,
    hub="lmms-lab/MMVet",
    source="haotian-liu/LLaVA c121f04: model_vqa.py; yuweihao/MM-Vet: mm-vet_evaluator.py",
    judge="gpt-4-0613",
)
