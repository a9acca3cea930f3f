"""lmms-eval's results in the form of scores.json, with a standard error where there is one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from efficientllava.benchmarks.accuracy import Part

NO_FILTER = "none"
STDERR = "_stderr"
BETTER: dict[Any, str] = {True: "higher", False: "lower"}
"""In words: MLflow would take a truth value for a metric."""


def task_scores(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """All metrics of all tasks and groups: {task: {metric: {value, standard_error, n, ...}}}.

    Values are as the task gives them: most are shares, some are per cent or sums. The standard
    error is lmms-eval's; where it has none and the metric is the mean of the questions' scores, it
    is that of this mean. A metric is called METRIC, or METRIC.FILTER where a task has filters.

    Args:
        results: what lmms-eval's `simple_evaluate` returns, with samples.
    """
    found = {}
    for task, values in results["results"].items():
        better = results.get("higher_is_better", {}).get(task) or {}
        samples = results.get("samples", {}).get(task, [])
        count = _count(results, task)
        metrics = {}
        for metric, chosen, value in _metrics(values):
            error = values.get(f"{metric}{STDERR},{chosen}")
            if not _is_number(error):
                error = _error_of_mean(value, [_score(sample, metric) for sample in samples])
            name = metric if chosen == NO_FILTER else f"{metric}.{chosen}"
            metrics[_name(name)] = {
                "value": float(value),
                "standard_error": error if error is None else float(error),
                "n": count,
                "better": BETTER.get(better.get(metric)),
            }
        if metrics:
            found[task] = metrics
    return found


def main_part(scores: Mapping[str, Mapping[str, Any]], task: str) -> tuple[Part, str | None]:
    """The first metric of a task as the accuracy of scores.json, and a note where it is none.

    A value in [0, 1] with a standard error counts as a share.
    """
    metrics = scores.get(task) or {}
    name = next(iter(metrics), None)
    if name is None:
        return _nothing(), f"{task} gives no number"
    first = metrics[name]
    value, error = first["value"], first["standard_error"]
    if error is None or not 0.0 <= value <= 1.0:
        return _nothing(), f"{task}'s {name} is no share with an error, so no accuracy is compared"
    return {"accuracy": value, "standard_error": error, "n": first["n"]}, None


def answer_lines(task: str, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lines of answers: the question's number, what the model said, what counts as right."""
    return [
        {
            "id": f"{task}/{sample['doc_id']}",
            "text": _plain(sample["filtered_resps"]),
            "target": _plain(sample["target"]),
        }
        for sample in samples
    ]


def _nothing() -> Part:
    return {"accuracy": None, "standard_error": None, "n": 0}


def _metrics(values: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    for key, value in values.items():
        metric, comma, chosen = str(key).rpartition(",")
        if comma and STDERR not in metric and _is_number(value):
            yield metric, chosen, value


def _is_number(value: Any) -> bool:
    """Whether it is a finite number; numpy's are."""
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        return False
    return math.isfinite(float(value))


def _count(results: Mapping[str, Any], task: str) -> int:
    """The questions of a task, or of all tasks of a group."""
    below = results.get("group_subtasks", {}).get(task) or []
    if below:
        return sum(_count(results, each) for each in below)
    return len({sample["doc_id"] for sample in results.get("samples", {}).get(task, [])})


def _score(sample: Mapping[str, Any], metric: str) -> float | None:
    value = sample.get(metric)
    if isinstance(value, Mapping):
        value = value.get("score")
    return float(value) if _is_number(value) else None  # type: ignore[arg-type]


def _error_of_mean(value: float, scores: Sequence[float | None]) -> float | None:
    """The standard error of the questions' mean, if the value is this mean."""
    known = [score for score in scores if score is not None]
    if len(known) < 2 or len(known) != len(scores):
        return None
    if not math.isclose(fmean(known), float(value), rel_tol=1e-9, abs_tol=1e-12):
        return None
    return stdev(known) / math.sqrt(len(known))


def _name(metric: str) -> str:
    """A metric's name as MLflow takes it."""
    kept = (letter if letter.isalnum() or letter in "_-./ " else "_" for letter in metric)
    return "".join(kept)


def _plain(value: Any) -> Any:
    """A value as JSON has it; text for what JSON has not, the value itself of a list of one."""
    if isinstance(value, list) and len(value) == 1:
        return _plain(value[0])
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return str(value)
    return value
