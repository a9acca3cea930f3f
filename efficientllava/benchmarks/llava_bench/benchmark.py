"""LLaVA-Bench in the wild: open questions, compared with GPT-4's answers by a judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from efficientllava.benchmarks.base import Benchmark, Outcome
from efficientllava.progress import Progress
from efficientllava.reading import expanded

if TYPE_CHECKING:
    from efficientllava.benchmarks.judge.client import Judging
    from efficientllava.benchmarks.llava_bench.reading import Scene
    from efficientllava.benchmarks.predictions import Predictions


@dataclass(frozen=True)
class LLaVABench(Benchmark["Scene"]):
    """See `Benchmark`."""

    averages_judgements = True

    def read(self, source: str | Path, split: str, style: str) -> Sequence[Scene]:
        """See `Benchmark`."""
        from efficientllava.benchmarks.llava_bench.reading import read_scenes

        return read_scenes(source, split)

    def score(
        self,
        records: Sequence[Scene],
        predictions: Predictions,
        source: str | Path,
        judging: Judging | None,
        progress: Progress,
    ) -> Outcome:
        """See `Benchmark`: the judge compares every answer with GPT-4's."""
        from efficientllava.benchmarks.judge.client import models_of
        from efficientllava.benchmarks.llava_bench.review import read_rules, review
        from efficientllava.benchmarks.llava_bench.scores import score_reviews

        texts = self.answers(records, predictions)
        judging = self.require_judge(judging, predictions)
        judge, rules = judging.judge, read_rules(expanded(source))
        reviews = [
            review(records, texts, predictions.answer_ids, judge, rules, run, progress)
            for run in range(judging.runs)
        ]
        evaluations = [
            {scene.id: row["tuple"] for scene, row in zip(records, rows, strict=True)}
            for rows in reviews
        ]
        names = models_of(row["model"] for rows in reviews for row in rows)
        return self.outcome(
            score_reviews(records, evaluations),
            {"asked": judge.settings.model, "models": names, "runs": judging.runs},
            {f"reviews-{run}.jsonl": rows for run, rows in enumerate(reviews, start=1)},
        )

    def score_judged(
        self, records: Sequence[Scene], predictions: Sequence[Predictions], runs: int | None
    ) -> Outcome:
        """See `Benchmark`: review files, which are averaged."""
        from efficientllava.benchmarks.judge.client import UNNAMED, models_of
        from efficientllava.benchmarks.llava_bench.scores import pair_of, score_reviews
        from efficientllava.benchmarks.predictions import require_all, require_known

        identifiers = [record.id for record in records]
        for prediction in predictions:
            require_known(prediction.rows, identifiers, str(prediction.source))
            require_all(identifiers, prediction.rows, str(prediction.source))
        evaluations = [
            {key: pair_of(row) for key, row in prediction.rows.items()}
            for prediction in predictions
        ]
        names = models_of(
            str(row.values.get("model", ""))
            for prediction in predictions
            for row in prediction.rows.values()
        )
        judge = {"models": names or [f"{UNNAMED} (published: {self.judge})"]}
        return self.outcome(score_reviews(records, evaluations), judge)


LLAVA_BENCH = LLaVABench(
    name="llava_bench",
    title="LLaVA-Bench in the wild",
    new_tokens=1024,
    digits=1,
    hub="lmms-lab/llava-bench-in-the-wild",
    source="haotian-liu/LLaVA c121f04: model_vqa.py, eval_gpt_review_bench.py, "
    "summarize_gpt_review.py",
    judge="gpt-4-0314",
)
