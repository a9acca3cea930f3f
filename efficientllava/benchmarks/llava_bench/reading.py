"""LLaVA-Bench's records: from its official files or the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
from efficientllava.reading import expanded

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
    folder = expanded(source)
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
    if isinstance(caption, list) and all(isinstance(line, str) for line in caption):
        return "\n".join(caption)
    return row.text("caption")
