"""Differences between two models, question by question, with their standard errors.

Two models that answer the same questions err on much the same ones, so the error of the difference
is smaller than that of two independent accuracies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import hypot, sqrt
from pathlib import Path
from statistics import fmean
from typing import Any


@dataclass(frozen=True)
class Difference:
    """One model minus another, with one standard error.

    Attributes:
        n: questions that both answered; 0 where the two are not paired.
    """

    value: float
    error: float
    n: int = 0


@dataclass(frozen=True)
class Answers:
    """What a model did with each question, by the question's id.

    Attributes:
        right: 1.0 or 0.0.
        loss: negative log-likelihood of the right answer in nats.
    """

    right: Mapping[str, float]
    loss: Mapping[str, float]

    @classmethod
    def read(cls, path: Path) -> Answers | None:
        """The lines of predictions.jsonl; None where they do not say which answers are right."""
        if not path.is_file():
            return None
        lines = path.read_text(encoding="utf-8").splitlines()
        rows: list[dict[str, Any]] = [json.loads(line) for line in lines if line.strip()]
        if not rows or not all({"id", "answer", "predicted"} <= row.keys() for row in rows):
            return None
        return cls(
            {str(row["id"]): float(row["answer"] == row["predicted"]) for row in rows},
            {str(row["id"]): float(row["answer_nll"]) for row in rows if "answer_nll" in row},
        )


def paired(one: Mapping[str, float], other: Mapping[str, float]) -> Difference | None:
    """The mean of one minus other over common keys; None where these are less than two.

    The error is s / sqrt(n), s the sample standard deviation of the n differences.
    """
    values = [one[key] - other[key] for key in sorted(one.keys() & other.keys())]
    if len(values) < 2:
        return None
    mean = fmean(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Difference(mean, sqrt(variance / len(values)), len(values))


def independent(values: Sequence[float], errors: Sequence[float]) -> Difference:
    """The first minus the second of two means with independent standard errors."""
    (one, other), (first, second) = values, errors
    return Difference(one - other, hypot(first, second))
