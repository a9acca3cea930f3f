"""A benchmark from a model to its scores: ask, generate, score."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficientllava.benchmarks.base import Benchmark, Outcome, full_prompt, read_records
from efficientllava.benchmarks.generation import Asked, generate_answers
from efficientllava.benchmarks.journal import Journal
from efficientllava.benchmarks.judge.client import Judging
from efficientllava.benchmarks.predictions import Predictions, answer_row
from efficientllava.data.prompts import IMAGE_TOKEN, asks_as_vicuna, chat_prompt
from efficientllava.models.families import family_of
from efficientllava.progress import Progress


@dataclass(frozen=True)
class Plan:
    """The questions for a model, and how they are put.

    Attributes:
        source: a folder with the official files, or a hub id.
        questions: the first so many; None for all.
        new_tokens: length at which answers are cut; None for the benchmark's own.
        chat_template: `evaluation.chat_template`, which the processor was loaded with.
    """

    benchmark: Benchmark[Any]
    source: str
    split: str | None = None
    style: str | None = None
    questions: int | None = None
    batch_size: int = 1
    new_tokens: int | None = None
    chat_template: str = "auto"


@dataclass(frozen=True)
class Result:
    """A model's answers in LLaVA's official format, and their scores.

    Attributes:
        submission: the file for the evaluation server; None where there is no server.
    """

    answers: list[dict[str, Any]]
    outcome: Outcome
    submission: list[dict[str, str]] | None = None

    @property
    def files(self) -> dict[str, Any]:
        """Further files to write, by name: the judge's judgements, the submission."""
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
    asked = [Asked(record, prompt_of(model, processor, plan, record)) for record in records]
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
    style = benchmark.style(plan.style)
    rows = [
        answer_row(
            benchmark.question_id(record), benchmark.logged_prompt(record, style), text, model_id
        )
        for record, text in zip(records, texts, strict=True)
    ]
    predictions = Predictions(
        Path("predictions.jsonl"),
        texts={record.id: text for record, text in zip(records, texts, strict=True)},
        answer_ids={record.id: row["answer_id"] for record, row in zip(records, rows, strict=True)},
    )
    upload = benchmark.submission(records, predictions.texts)
    if not benchmark.has_answers(records):
        return Result(rows, _unscored(benchmark, len(records)), upload)
    outcome = benchmark.score(records, predictions, plan.source, judging, progress)
    return Result(rows, outcome, upload)


def prompt_of(model: Any, processor: Any, plan: Plan, record: Any) -> str:
    """Everything the model reads before its answer to a record.

    LLaVA-1.5 and LLaVA-SQA are asked as their official scripts do; any other model with its chat
    template, or bare where it has none (`data.prompts.chat_prompt`).

    Raises:
        UserError: the question cannot be put in this style, or the template refuses it.
    """
    family = family_of(model.config)
    official = plan.chat_template == "auto" and model.config.model_type == "llava"
    if official and asks_as_vicuna(processor):
        full = full_prompt(plan.benchmark, record, plan.style)
        return full.replace(IMAGE_TOKEN, family.image_token)
    message = plan.benchmark.message(record, plan.benchmark.style(plan.style))
    has_image = IMAGE_TOKEN in message
    text = message.replace(f"{IMAGE_TOKEN}\n", "", 1)
    return chat_prompt(processor, text, family.image_token if has_image else None)


def _unscored(benchmark: Benchmark[Any], n: int) -> Outcome:
    return benchmark.outcome(
        {
            "accuracy": None,
            "standard_error": None,
            "n": 0,
            "breakdowns": {},
            "notes": [f"{n} answers for the evaluation server: this split's are not public"],
        }
    )
