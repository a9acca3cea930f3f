"""The engine that lets lmms-eval ask its tasks of our model and score the answers."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from efficientllava.benchmarks.engines.base import Engine, Measured, Subject
from efficientllava.errors import UserError

if TYPE_CHECKING:
    from efficientllava.benchmarks.engines.lmms_eval.answering import Answering
    from efficientllava.benchmarks.engines.lmms_eval.tasks import Tasks
    from efficientllava.parameters import EvaluationParameters

logger = logging.getLogger(__name__)

SEED = 0
"""Of what tasks draw: the order of choices, for example."""


class LmmsEval(Engine):
    """The tasks of the package lmms-eval."""

    name = "lmms_eval"

    def misfit(self, settings: EvaluationParameters) -> str | None:
        """It needs tasks, and asks no benchmark of ours."""
        if not settings.lmms_tasks:
            return "engine lmms_eval needs lmms_tasks, e.g. [gqa, pope]"
        if len(set(settings.lmms_tasks)) != len(settings.lmms_tasks):
            return f"lmms_tasks {list(settings.lmms_tasks)} name one twice"
        if settings.named_benchmarks:
            names = ", ".join(settings.named_benchmarks)
            return f"{names}: with engine lmms_eval leave benchmark at demo, benchmarks empty"
        return None

    def check_names(self, settings: EvaluationParameters) -> None:
        """Look the tasks up and read their definitions.

        Raises:
            UserError: see `tasks.find_tasks`.
        """
        from efficientllava.benchmarks.engines.lmms_eval.tasks import find_tasks

        find_tasks(settings.lmms_tasks, settings.lmms_folder)

    def check(self, settings: EvaluationParameters) -> None:
        """Look the tasks up and load their data, before a model is loaded.

        Raises:
            UserError: as `check_names`; data cannot be loaded.
        """
        from efficientllava.benchmarks.engines.lmms_eval.tasks import find_tasks

        find_tasks(settings.lmms_tasks, settings.lmms_folder).load()

    def measure(self, subject: Subject) -> Measured:
        """Ask all tasks and score the answers.

        Raises:
            UserError: data of a task cannot be loaded; a question cannot be put to the model.
        """
        from efficientllava.benchmarks.engines.lmms_eval.answering import (
            Answering,
            official_processor,
        )
        from efficientllava.benchmarks.engines.lmms_eval.package import VERSION
        from efficientllava.benchmarks.engines.lmms_eval.scores import answer_lines, main_part
        from efficientllava.benchmarks.engines.lmms_eval.tasks import find_tasks

        settings = subject.settings
        tasks = find_tasks(settings.lmms_tasks, settings.lmms_folder)
        processor = official_processor(
            subject.checkpoint,
            subject.model,
            subject.processor,
            settings.style,
            settings.chat_template,
        )
        answering = Answering(
            subject.model,
            processor,
            subject.key,
            subject.work / "answers" / f"lmms_eval-{subject.key[:16]}.jsonl",
            settings.batch_size,
            settings.new_tokens,
            subject.progress,
        )
        scores, samples = evaluated(tasks, answering, settings.questions)
        part, note = main_part(scores, tasks.names[0])
        if note is not None:
            logger.warning("%s", note)
        record = {
            "benchmark": tasks.names[0],
            "source": f"lmms-eval {VERSION}",
            "answer_nll": None,
            **part,
            "breakdowns": {},
            "notes": [] if note is None else [note],
            "lmms_eval": scores,
        }
        answers = {task: answer_lines(task, rows) for task, rows in samples.items()}
        lines = [json.dumps(line) for rows in answers.values() for line in rows]
        return Measured(record, lines, answers)


def evaluated(
    tasks: Tasks, answering: Answering, limit: int | None
) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Scores and samples of all tasks, by lmms-eval's own evaluator.

    Args:
        limit: questions of each task; None for all.

    Raises:
        UserError: see `LmmsEval.measure`; a scorer fails again and again.
    """
    from lmms_eval.evaluator import simple_evaluate
    from tenacity import RetryError

    from efficientllava.benchmarks.engines.lmms_eval.model import ChatModel, SimpleModel
    from efficientllava.benchmarks.engines.lmms_eval.package import first_line, truncated_pictures
    from efficientllava.benchmarks.engines.lmms_eval.scores import task_scores

    scores: dict[str, dict[str, Any]] = {}
    samples: dict[str, list[dict[str, Any]]] = {}
    for simple, names in tasks.by_interface():
        try:
            with truncated_pictures():
                results = simple_evaluate(
                    model=(SimpleModel if simple else ChatModel)(answering),
                    tasks=names,
                    task_manager=tasks.manager,
                    batch_size=answering.batch_size,
                    limit=limit,
                    log_samples=True,
                    random_seed=SEED,
                    numpy_random_seed=SEED,
                    torch_random_seed=SEED,
                    fewshot_random_seed=SEED,
                )
        except RetryError as error:  # of a scorer, which it starts five times
            raise UserError(
                f"the answers cannot be scored: {first_line(error)}",
                where=f"lmms-eval, {', '.join(names)}",
                remedy="some tasks ask a judge: see the task's own page for the keys that it needs",
            ) from error
        scores |= task_scores(results)
        samples |= results["samples"]
    return scores, samples


LMMS_EVAL = LmmsEval()
