"""Paired differences against numpy, and what cannot be paired."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from efficientllava.report.decision.paired import Answers, independent, paired


def test_a_paired_difference_is_that_of_numpy() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(2, 50))
    found = paired(dict(enumerate_keys(one)), dict(enumerate_keys(other)))
    assert found is not None and found.n == 50
    assert found.value == pytest.approx((one - other).mean())
    assert found.error == pytest.approx((one - other).std(ddof=1) / np.sqrt(50))


def enumerate_keys(values: np.ndarray) -> list[tuple[str, float]]:
    return [(f"q{number}", float(value)) for number, value in enumerate(values)]


def test_only_common_questions_count() -> None:
    found = paired({"a": 1.0, "b": 0.0, "c": 1.0}, {"b": 1.0, "c": 1.0, "d": 0.0})
    assert found is not None and (found.value, found.n) == (-0.5, 2)
    assert paired({"a": 1.0}, {"a": 0.0}) is None
    assert paired({}, {}) is None


def test_independent_errors_add_in_squares() -> None:
    found = independent([0.8, 0.75], [0.03, 0.04])
    assert (round(found.value, 12), round(found.error, 12), found.n) == (0.05, 0.05, 0)


def test_answers_are_read_where_they_say_what_is_right(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    assert Answers.read(path) is None
    rows = [
        {"id": "1", "answer": 2, "predicted": 2, "answer_nll": 0.5},
        {"id": "2", "answer": 0, "predicted": 1, "answer_nll": 1.5},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = Answers.read(path)
    assert found == Answers({"1": 1.0, "2": 0.0}, {"1": 0.5, "2": 1.5})
    path.write_text(json.dumps({"question_id": "1", "text": "a square"}) + "\n")
    assert Answers.read(path) is None
