"""The engine of our own benchmarks, as their official scripts are, and of the demo questions."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from efficientllava.benchmarks.engines.base import Engine, Measured, Subject
from efficientllava.registry import BENCHMARKS

if TYPE_CHECKING:
    from efficientllava.benchmarks.run import Result
    from efficientllava.parameters import EvaluationParameters


class OwnBenchmarks(Engine):
    """The benchmarks of the catalogue and the demo questions."""

    name = "own"

    def misfit(self, settings: EvaluationParameters) -> str | None:
        """Tasks of lmms-eval need that engine; every benchmark needs its data."""
        if settings.lmms_tasks:
            return "lmms_tasks are asked by engine: lmms_eval"
        names = settings.named_benchmarks
        if len(set(names)) != len(names):
            return f"benchmarks {list(names)} name one twice"
        for name in names:
            if name not in settings.data:
                return f"benchmark {name} needs its folder or hub id in data"
        return None

    def check_names(self, settings: EvaluationParameters) -> None:
        """Nothing is left to do: names are looked up when params.yaml is read."""

    def check(self, settings: EvaluationParameters) -> None:
        """Check that there is a key for the judge, if a benchmark needs one: not after hours.

        Raises:
            UserError: there is none.
        """
        from efficientllava.benchmarks.judge.client import require_key

        if any(BENCHMARKS[name].judge for name in settings.named_benchmarks):
            require_key()

    def measure(self, subject: Subject) -> Measured:
        """Answer the questions of all benchmarks and score the answers.

        Raises:
            UserError: records, images or the judge cannot be used.
        """
        settings = subject.settings
        results = {name: _result(subject, name) for name in settings.named_benchmarks}
        measured: dict[str, Any] = {
            name: {"answer_nll": None, **result.outcome.scores} for name, result in results.items()
        }
        if settings.benchmark == "demo":
            record, lines = _demo(subject)
        else:
            record = measured.pop(settings.benchmark)
            lines = [json.dumps(row) for row in results[settings.benchmark].answers]
        if measured:
            record["benchmarks"] = measured
        files = {
            f"{name}-{file}": value
            for name, result in results.items()
            for file, value in result.files.items()
        }
        return Measured(
            record, lines, {name: result.answers for name, result in results.items()}, files
        )


def _demo(subject: Subject) -> tuple[dict[str, Any], list[str]]:
    """The likeliest choice of each demo question that the model takes.

    A text-only model gets those in words, one that needs images those about a picture.
    """
    from efficientllava.benchmarks.demo_questions.multiple_choice import answer_questions, scores
    from efficientllava.data.questions import read_questions
    from efficientllava.models.families import family_of
    from efficientllava.models.source import NEEDS_IMAGES

    settings, model = subject.settings, subject.model
    questions = read_questions(subject.questions, "test")
    if not family_of(model.config).takes_images:
        questions = [question for question in questions if question.image is None]
    elif model.config.model_type in NEEDS_IMAGES:
        questions = [question for question in questions if question.image is not None]
    questions = questions[: settings.questions]
    predictions = answer_questions(
        model, subject.processor, questions, settings.batch_size, subject.progress
    )
    lines = [json.dumps(asdict(prediction), sort_keys=True) for prediction in predictions]
    return scores(questions, predictions), lines


def _result(subject: Subject, name: str) -> Result:
    """A benchmark of the catalogue: the model's answers and their scores."""
    from efficientllava.benchmarks.run import Plan, run_benchmark
    from efficientllava.benchmarks.scoring import judging_by

    settings, benchmark = subject.settings, BENCHMARKS[name]
    plan = Plan(
        benchmark,
        settings.data[name],
        split=settings.splits.get(name),
        style=settings.style if settings.style in benchmark.styles else None,
        questions=settings.questions,
        batch_size=settings.batch_size,
        new_tokens=settings.new_tokens,
        chat_template=settings.chat_template,
    )
    judging = judging_by(benchmark, settings.judge, subject.work / "judge")
    answers = subject.work / "answers" / f"{name}-{subject.key[:16]}.jsonl"
    return run_benchmark(
        subject.model,
        subject.processor,
        plan,
        subject.name,
        subject.key,
        answers,
        judging,
        subject.progress,
    )


OWN = OwnBenchmarks()
