"""Scores of predictions, without a model; a judge where the benchmark needs one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from efficientllava.benchmarks import (
    llava_bench,
    llava_bench_review,
    mmvet,
    mmvet_grading,
    scienceqa,
    vizwiz,
)
from efficientllava.benchmarks.catalogue import Benchmark, read_records
from efficientllava.benchmarks.judge import Judge, JudgeSettings, models_of
from efficientllava.benchmarks.predictions import (
    Predictions,
    read_predictions,
    require_all,
    require_known,
    some,
)
from efficientllava.benchmarks.records import Record
from efficientllava.errors import UserError
from efficientllava.parameters import JudgeParameters
from efficientllava.progress import Progress, silent

UNNAMED = "not named in the file"


@dataclass(frozen=True)
class Judging:
    """A judge, and how often each answer is judged."""

    judge: Judge
    runs: int = 1


@dataclass(frozen=True)
class Outcome:
    """What came out.

    Attributes:
        scores: in the form of scores.json: accuracy in [0, 1] with standard error, n, breakdowns;
            "official" numbers as the official script rounds them; notes.
        judgements: the judge's grades or reviews by file name, in the official formats.
    """

    scores: dict[str, Any]
    judgements: dict[str, Any] = field(default_factory=dict)


def judging_by(benchmark: Benchmark, wanted: JudgeParameters, cache: Path) -> Judging | None:
    """The judge that the parameters name; None for a benchmark that needs none."""
    if not benchmark.judge:
        return None
    settings = JudgeSettings(
        wanted.model or benchmark.judge,
        wanted.base_url,
        wanted.parallel,
        wanted.attempts,
        wanted.timeout,
    )
    return Judging(Judge(settings, cache), wanted.runs)


def score_files(
    benchmark: Benchmark,
    files: Sequence[Path],
    source: str | Path,
    split: str | None = None,
    judging: Judging | None = None,
    runs: int | None = None,
    progress: Progress = silent,
) -> Outcome:
    """Score prediction files in the official formats.

    Args:
        files: one file; for LLaVA-Bench also several review files, which are averaged.
        source: the benchmark's data.
        runs: how many grades of each question of an MM-Vet grade file are used; None for all.

    Raises:
        UserError: naming the file, line or ids that cannot be used, or that a judge is missing.
    """
    records = read_records(benchmark, source, split)
    predictions = [read_predictions(file) for file in files]
    if len(predictions) > 1 and not (
        benchmark.name == "llava_bench" and all(each.rows for each in predictions)
    ):
        raise UserError(
            "one file of predictions at a time; only review files of LLaVA-Bench are averaged",
            where=benchmark.name,
        )
    if predictions[0].rows:
        return _score_judged(benchmark, records, predictions, runs)
    return score_predictions(benchmark, records, predictions[0], source, judging, progress)


def score_predictions(
    benchmark: Benchmark,
    records: Sequence[Record],
    predictions: Predictions,
    source: str | Path,
    judging: Judging | None = None,
    progress: Progress = silent,
) -> Outcome:
    """Score a model's answers.

    Raises:
        UserError: as `score_files`.
    """
    where = str(predictions.source)
    if benchmark.name.startswith("scienceqa"):
        problems = cast(Sequence[scienceqa.Problem], records)
        return _named(benchmark, _score_scienceqa(problems, predictions, source))
    if not predictions.texts:
        raise UserError(f"holds no answers to {benchmark.title}", where=where)
    texts = _spelled(benchmark, records, predictions.texts)
    identifiers = [record.id for record in records]
    require_known(texts, identifiers, where)
    require_all(identifiers, texts, where)
    if benchmark.name == "vizwiz":
        return _named(benchmark, vizwiz.score_texts(cast(Sequence[vizwiz.Photo], records), texts))
    if judging is None:
        raise UserError(
            f"the answers to {benchmark.title} need a judge",
            where=where,
            remedy=f"name one (published: {benchmark.judge}), or give a file that is judged",
        )
    if benchmark.name == "mmvet":
        return _grade(benchmark, cast(Sequence[mmvet.Sample], records), texts, judging, progress)
    scenes = cast(Sequence[llava_bench.Scene], records)
    return _review(benchmark, scenes, texts, predictions.answer_ids, source, judging, progress)


def _named(
    benchmark: Benchmark, scores: dict[str, Any], judge: dict[str, Any] | None = None
) -> Outcome:
    named = {"benchmark": benchmark.name, "source": benchmark.source, **scores}
    return Outcome(named if judge is None else {**named, "judge": judge})


def _spelled(
    benchmark: Benchmark, records: Sequence[Record], texts: Mapping[str, str]
) -> dict[str, str]:
    """Answers under the records' ids, where the official files spell them in another way."""
    if benchmark.name == "vizwiz":
        return vizwiz.by_number(cast(Sequence[vizwiz.Photo], records), texts)
    if benchmark.name == "mmvet":
        known = {record.id for record in records}
        return {
            f"v1_{key}" if key not in known and f"v1_{key}" in known else key: text
            for key, text in texts.items()
        }
    return dict(texts)


def spelled_answers(
    benchmark: Benchmark, records: Sequence[Record], predictions: Predictions
) -> dict[str, str]:
    """All answers by the records' ids.

    Raises:
        UserError: an answer is missing, or belongs to no question.
    """
    texts = _spelled(benchmark, records, predictions.texts)
    identifiers = [record.id for record in records]
    require_known(texts, identifiers, str(predictions.source))
    require_all(identifiers, texts, str(predictions.source))
    return texts


def _score_scienceqa(
    problems: Sequence[scienceqa.Problem], predictions: Predictions, source: str | Path
) -> dict[str, Any]:
    where = str(predictions.source)
    identifiers = [problem.id for problem in problems]
    asked = set(identifiers)
    answered = {**predictions.indices, **predictions.texts}
    require_known(answered, asked | scienceqa.all_identifiers(source), where)
    notes = []
    if beyond := [each for each in answered if each not in asked]:
        notes.append(f"{len(beyond)} answers to questions of other splits or without image unused")
    if predictions.indices:
        require_all(identifiers, predictions.indices, where)  # as evaluate_acc.py does
    chosen, unparsed = dict(predictions.indices), 0
    if predictions.texts.keys() >= predictions.indices.keys() & asked:
        for problem in problems:
            if problem.id in predictions.texts:
                text = predictions.texts[problem.id]
                chosen[problem.id] = scienceqa.chosen_index(text, problem.choices)
                unparsed += scienceqa.stated_letter(text) == scienceqa.FAILED
        if predictions.indices:
            own = scienceqa.score_indices(problems, predictions.indices)["correct"]
            notes.append(
                "answers are read from `outputs`, nothing guessed; the file's own `results` have "
                f"{own} right ({100 * own / len(problems):.2f} %)"
            )
    missing = [each for each in identifiers if each not in chosen]
    if missing:
        notes.append(
            f"{len(missing)} questions without an answer count as wrong, as in "
            f"eval_science_qa.py: {some(missing)}"
        )
    if unparsed:
        notes.append(f"{unparsed} answers state no letter and count as wrong")
    scores = scienceqa.score_indices(problems, chosen)
    return {
        **scores,
        "unparsed": unparsed,
        "missing": len(missing),
        "notes": [*notes, *scores["notes"]],
    }


def _score_judged(
    benchmark: Benchmark,
    records: Sequence[Record],
    predictions: Sequence[Predictions],
    runs: int | None,
) -> Outcome:
    identifiers = [record.id for record in records]
    if benchmark.name not in ("mmvet", "llava_bench"):
        raise UserError(f"holds no answers to {benchmark.title}", where=str(predictions[0].source))
    for each in predictions:
        if benchmark.name == "llava_bench":
            require_known(each.rows, identifiers, str(each.source))
        require_all(identifiers, each.rows, str(each.source))
    rows = predictions[0].rows
    if benchmark.name == "mmvet":
        samples = cast(Sequence[mmvet.Sample], records)
        known = {record.id for record in records}
        used = {key: row for key, row in rows.items() if key in known}
        scores = mmvet.score_grades(samples, mmvet.grades_of(used, runs))
        if len(used) < len(rows):
            scores["notes"].append(f"{len(rows) - len(used)} grades of other questions unused")
        names = models_of(str(name) for row in used.values() for name in row.values["model"])
        malformed = sum(sum(row.values.get("malformed", ())) for row in used.values())
        return _named(benchmark, {**scores, "malformed": malformed}, {"models": names or [UNNAMED]})
    evaluations = [
        {key: llava_bench.pair_of(row) for key, row in each.rows.items()} for each in predictions
    ]
    scenes = cast(Sequence[llava_bench.Scene], records)
    names = models_of(
        str(row.values.get("model", "")) for each in predictions for row in each.rows.values()
    )
    judge = {"models": names or [f"{UNNAMED} (published: {benchmark.judge})"]}
    return _named(benchmark, llava_bench.score_reviews(scenes, evaluations), judge)


def _grade(
    benchmark: Benchmark,
    samples: Sequence[mmvet.Sample],
    texts: Mapping[str, str],
    judging: Judging,
    progress: Progress,
) -> Outcome:
    judge, runs = judging.judge, judging.runs
    grades = mmvet_grading.grade(samples, texts, judge, runs, progress)
    scores = mmvet.score_grades(samples, {key: each["score"] for key, each in grades.items()})
    malformed = sum(sum(each["malformed"]) for each in grades.values())
    names = models_of(name for each in grades.values() for name in each["model"])
    record = {"asked": judge.settings.model, "models": names, "runs": runs}
    outcome = _named(benchmark, {**scores, "malformed": malformed}, record)
    name = f"{judge.settings.model}-grade-{runs}runs.json".replace("/", "_")
    return Outcome(outcome.scores, {name: grades})


def _review(
    benchmark: Benchmark,
    scenes: Sequence[llava_bench.Scene],
    texts: Mapping[str, str],
    answer_ids: Mapping[str, str],
    source: str | Path,
    judging: Judging,
    progress: Progress,
) -> Outcome:
    rules = llava_bench_review.read_rules(Path(source).expanduser())
    reviews = [
        llava_bench_review.review(scenes, texts, answer_ids, judging.judge, rules, run, progress)
        for run in range(judging.runs)
    ]
    evaluations = [
        {scene.id: row["tuple"] for scene, row in zip(scenes, rows, strict=True)}
        for rows in reviews
    ]
    names = models_of(row["model"] for rows in reviews for row in rows)
    record = {"asked": judging.judge.settings.model, "models": names, "runs": judging.runs}
    outcome = _named(benchmark, llava_bench.score_reviews(scenes, evaluations), record)
    files = {f"reviews-{run}.jsonl": rows for run, rows in enumerate(reviews, start=1)}
    return Outcome(outcome.scores, files)
