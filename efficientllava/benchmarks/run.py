"""A benchmark from a model to its scores: ask, generate, score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficientllava.benchmarks.catalogue import Benchmark, full_prompt, logged_prompt, read_records
from efficientllava.benchmarks.generation import Asked, generate_answers
from efficientllava.benchmarks.journal import Journal
from efficientllava.benchmarks.predictions import Predictions, answer_row
from efficientllava.benchmarks.records import Record
from efficientllava.benchmarks.scoring import Judging, Outcome, score_predictions
from efficientllava.benchmarks.vizwiz import Photo, submission
from efficientllava.progress import Progress


@dataclass(frozen=True)
class Plan:
    """What is asked of a model.

    Attributes:
        source: a folder with the official files, or a hub id.
        questions: the first so many; None for all.
        new_tokens: length at which answers are cut; None for the benchmark's own.
    """

    benchmark: Benchmark
    source: str
    split: str | None = None
    style: str | None = None
    questions: int | None = None
    batch_size: int = 1
    new_tokens: int | None = None


@dataclass(frozen=True)
class Result:
    """A model's answers in LLaVA's official format, and their scores.

    Attributes:
        submission: VizWiz's file for the evaluation server; None for other benchmarks.
    """

    answers: list[dict[str, Any]]
    outcome: Outcome
    submission: list[dict[str, str]] | None = None

    @property
    def files(self) -> dict[str, Any]:
        """What else is worth a file, by name: the judge's judgements, the submission."""
        upload = {} if self.submission is None else {"submission.json": self.submission}
        return {**self.outcome.judgements, **upload}


def run_benchmark(
    model: Any,
    processor: Any,
    plan: Plan,
    model_id: str,
    model_key: str,
    work: Path,
    judging: Judging | None,
    progress: Progress,
) -> Result:
    """Answer a benchmark's questions and score the answers.

    Args:
        model_id: the model's name in the answer file.
        model_key: digest of its weights; answers in `work` are taken up under it.
        work: the journal of answers.

    Raises:
        UserError: records, images or the judge cannot be used.
    """
    benchmark = plan.benchmark
    records = list(read_records(benchmark, plan.source, plan.split, plan.style))[: plan.questions]
    asked = [Asked(each, full_prompt(benchmark, each, plan.style)) for each in records]
    texts = generate_answers(
        model,
        processor,
        asked,
        plan.batch_size,
        plan.new_tokens or benchmark.new_tokens,
        Journal(work),
        model_key,
        progress,
    )
    rows = [
        answer_row(
            _official_id(benchmark, record),
            logged_prompt(benchmark, record, plan.style),
            text,
            model_id,
        )
        for record, text in zip(records, texts, strict=True)
    ]
    predictions = Predictions(
        Path("predictions.jsonl"),
        texts={record.id: text for record, text in zip(records, texts, strict=True)},
        answer_ids={record.id: row["answer_id"] for record, row in zip(records, rows, strict=True)},
    )
    upload = _submission(benchmark, records, predictions.texts)
    if upload is not None and not all(
        photo.answers for photo in records if isinstance(photo, Photo)
    ):
        return Result(rows, _unscored(benchmark, len(records)), upload)
    outcome = score_predictions(benchmark, records, predictions, plan.source, judging, progress)
    return Result(rows, outcome, upload)


def _official_id(benchmark: Benchmark, record: Record) -> str | int:
    if benchmark.name.startswith("scienceqa"):
        return record.id
    number = record.id.removeprefix("v1_")
    return int(number) if number.isdigit() else record.id


def _submission(
    benchmark: Benchmark, records: Sequence[Record], texts: dict[str, str]
) -> list[dict[str, str]] | None:
    if benchmark.name != "vizwiz":
        return None
    return submission([each for each in records if isinstance(each, Photo)], texts)


def _unscored(benchmark: Benchmark, n: int) -> Outcome:
    return Outcome(
        {
            "benchmark": benchmark.name,
            "source": benchmark.source,
            "accuracy": None,
            "standard_error": None,
            "n": 0,
            "breakdowns": {},
            "notes": [f"{n} answers for the evaluation server: this split's are not public"],
        }
    )
