"""Shares and means with their standard errors, in the form of scores.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Part = dict[str, Any]
"""{"accuracy", "standard_error", "n"}; shares in [0, 1], null where there is nothing."""


def share(right: Sequence[bool]) -> Part:
    """The share of hits and its binomial standard error; null without questions."""
    n = len(right)
    if n == 0:
        return {"accuracy": None, "standard_error": None, "n": 0}
    accuracy = sum(right) / n
    error = math.sqrt(accuracy * (1 - accuracy) / n)
    return {"accuracy": accuracy, "standard_error": error, "n": n}


def mean(values: Sequence[float]) -> Part:
    """The mean of scores in [0, 1] and its standard error (0 for a single one, as `share`)."""
    n = len(values)
    if n == 0:
        return {"accuracy": None, "standard_error": None, "n": 0}
    average = sum(values) / n
    return {"accuracy": average, "standard_error": _error(values, average), "n": n}


def ratio_of_means(values: Sequence[float], references: Sequence[float]) -> Part:
    """mean(values) / mean(references) and its standard error by the delta method."""
    n, below = len(values), sum(references)
    if n == 0 or below == 0:
        return {"accuracy": None, "standard_error": None, "n": n}
    ratio = sum(values) / below
    rests = [value - ratio * other for value, other in zip(values, references, strict=True)]
    error = _error(rests, sum(rests) / n)
    return {
        "accuracy": ratio,
        "standard_error": error * n / abs(below),
        "n": n,
    }


def _error(values: Sequence[float], average: float) -> float:
    n = len(values)
    if n < 2:
        return 0.0
    return math.sqrt(sum((value - average) ** 2 for value in values) / (n - 1) / n)
