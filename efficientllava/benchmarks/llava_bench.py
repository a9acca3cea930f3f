"""LLaVA-Bench in the wild: open questions, compared with GPT-4's answers by a judge.

Sources: llava/eval/eval_gpt_review_bench.py and summarize_gpt_review.py at haotian-liu/LLaVA
c121f04.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from efficientllava.benchmarks.accuracy import ratio_of_means
from efficientllava.benchmarks.records import (
    Record,
    has_parquet,
    hub_rows,
    is_local,
    picture,
    require_distinct,
)
from efficientllava.benchmarks.rows import Row, read_lines
from efficientllava.errors import UserError

CATEGORIES = ("complex", "conv", "detail")
PREFIX = "llava_bench_"


@dataclass(frozen=True)
class Scene(Record):
    """One question.

    Attributes:
        category: conv, detail or complex.
        caption: what a person says the image shows; the judge reads it instead of the image.
        reference: GPT-4's answer, and its id.
    """

    category: str
    caption: str
    reference: str
    reference_id: str


def read_scenes(source: str | Path, split: str = "test") -> list[Scene]:
    """The questions, in the order of questions.jsonl.

    Args:
        source: a folder with questions.jsonl, context.jsonl, answers_gpt4.jsonl and images/; or a
            hub id of parquet records (split `train` there).

    Raises:
        UserError: naming the record that cannot be used.
    """
    if not is_local(source):
        return _from_hub(str(source))
    folder = Path(source).expanduser()
    if not (folder / "questions.jsonl").is_file() and has_parquet(folder):
        return _from_hub(str(folder))
    captions = {row.text("image"): row for row in read_lines(folder / "context.jsonl")}
    references = {
        row.identity("question_id"): row for row in read_lines(folder / "answers_gpt4.jsonl")
    }
    scenes = []
    for row in read_lines(folder / "questions.jsonl"):
        identifier, image = row.identity("question_id"), row.text("image")
        if image not in captions:
            raise UserError(f"context.jsonl has no caption of {image}", where=row.where)
        if identifier not in references:
            raise UserError(f"answers_gpt4.jsonl has no answer to {identifier}", where=row.where)
        reference = references[identifier]
        scenes.append(
            Scene(
                id=identifier,
                text=row.text("text"),
                image=folder / "images" / image,
                category=_category(row),
                caption=_caption(captions[image]),
                reference=reference.text("text"),
                reference_id=str(reference.values.get("answer_id", identifier)),
            )
        )
    require_distinct(scenes, str(folder / "questions.jsonl"))
    return scenes


def _from_hub(source: str) -> list[Scene]:
    return [
        Scene(
            id=row.identity("question_id"),
            text=row.text("question"),
            image=picture(row.value("image"), row.where),
            category=_category(row),
            caption=_caption(row),
            reference=row.text("gpt_answer"),
            reference_id=row.identity("question_id"),
        )
        for row in hub_rows(source, None, "train")
    ]


def _category(row: Row) -> str:
    category = row.text("category").removeprefix(PREFIX)
    if category not in CATEGORIES:
        raise UserError(f"category {category!r} is none of {', '.join(CATEGORIES)}", row.where)
    return category


def _caption(row: Row) -> str:
    caption = row.value("caption")
    return "\n".join(caption) if isinstance(caption, list) else row.text("caption")


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
    malformed = sum(tuple(pair) == (-1.0, -1.0) for each in evaluations for pair in each.values())
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
