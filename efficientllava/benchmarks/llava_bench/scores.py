"""LLaVA-Bench's scores from reviews.

Source: summarize_gpt_review.py at haotian-liu/LLaVA c121f04.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from efficientllava.benchmarks.accuracy import ratio_of_means
from efficientllava.benchmarks.llava_bench.reading import CATEGORIES, Scene
from efficientllava.benchmarks.rows import Row
from efficientllava.errors import UserError

HIGHEST = 100
"""Of a score: the judge is asked for 1 to 10."""


def parsed_scores(review: str) -> list[float]:
    """The two scores in a review's first line (reference, model); [-1, -1] if it has none.

    The line must be two numbers with one blank or comma between: "8, 9" is already malformed, and
    the malformed pair goes into the mean. Both are official.
    """
    parts = review.split("\n")[0].replace(",", " ").split(" ")
    try:
        scores = [float(part) for part in parts]
    except ValueError:
        return [-1.0, -1.0]
    # the official script would take "nan nan" and lose the whole mean to it
    return scores if len(scores) == 2 and np.isfinite(scores).all() else [-1.0, -1.0]


def pair_of(row: Row) -> list[float]:
    """The scores of one line of a review file.

    Raises:
        UserError: they are no pair of numbers.
    """
    if "tuple" not in row.values:
        return parsed_scores(row.text("content"))
    pair = row.values["tuple"]
    if (
        not isinstance(pair, list)
        or len(pair) != 2
        or not all(isinstance(score, int | float) for score in pair)
        or any(isinstance(score, bool) for score in pair)
        # the official script's mark of a reply without scores is a pair of -1
        or not (pair == [-1, -1] or all(0 <= score <= HIGHEST for score in pair))
    ):
        raise UserError(f"tuple {pair!r} is no pair of scores", where=row.where)
    return [float(score) for score in pair]


def score_reviews(
    scenes: Sequence[Scene], evaluations: Sequence[Mapping[str, Sequence[float]]]
) -> dict[str, Any]:
    """The model's mean score relative to GPT-4's, in all and by category.

    Args:
        evaluations: for each evaluation the pair (GPT-4's score, the model's) by id.

    Returns:
        accuracy: the ratio, unrounded, with its standard error over questions (each question's
        scores averaged over evaluations). "official", in percent: of each evaluation from means
        rounded to three digits, then averaged, with the standard deviation between evaluations.
    """
    groups = {"all": list(scenes)} | {
        category: [scene for scene in scenes if scene.category == category]
        for category in CATEGORIES
    }
    groups = {name: members for name, members in groups.items() if members}
    official = {
        name: [_official(members, pairs) for pairs in evaluations]
        for name, members in groups.items()
    }
    parts = {name: _part(members, evaluations) for name, members in groups.items()}
    malformed = sum(
        tuple(pair) == (-1.0, -1.0) for evaluation in evaluations for pair in evaluation.values()
    )
    return {
        **parts.pop("all"),
        "breakdowns": parts,
        "official": {
            **{name: round(float(np.mean(values)), 1) for name, values in official.items()},
            "std": round(float(np.std(official["all"])), 1),
            "runs": official["all"],
        },
        "malformed": malformed,
        "notes": [],
    }


def _official(members: Sequence[Scene], pairs: Mapping[str, Sequence[float]]) -> float:
    means = np.asarray([pairs[scene.id] for scene in members]).mean(0).tolist()
    reference, model = (round(value, 3) for value in means)
    if reference == 0:
        raise UserError("all reviews give the reference 0: no ratio", where="llava_bench")
    return round(model / reference * 100, 1)


def _part(
    members: Sequence[Scene], evaluations: Sequence[Mapping[str, Sequence[float]]]
) -> dict[str, Any]:
    averaged = np.asarray(
        [[pairs[scene.id] for scene in members] for pairs in evaluations], dtype=float
    ).mean(axis=0)
    return ratio_of_means(averaged[:, 1].tolist(), averaged[:, 0].tolist())
