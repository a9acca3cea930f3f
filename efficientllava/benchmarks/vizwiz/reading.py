"""VizWiz's records: from its annotations, LLaVA's question file, or the hub."""

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
from efficientllava.files import read_json
from efficientllava.reading import expanded

SUFFIX = (
    "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
    "\nAnswer the question using a single word or phrase."
)
ANSWERS = 10


@dataclass(frozen=True)
class Photo(Record):
    """One question; its id is its number in the split's file.

    Attributes:
        name: the image's file name, the id in submissions.
        answers: ten answers by people; none in the test split.
        answer_type: other, unanswerable, yes/no or number.
    """

    name: str
    answers: tuple[str, ...] = ()
    answer_type: str = ""


def question_text(question: str) -> str:
    """The text of llava_test.jsonl for a question of the annotations."""
    return question.capitalize() + SUFFIX


def read_photos(source: str | Path, split: str = "val") -> list[Photo]:
    """The questions of a split, in the order of its file.

    Args:
        source: a folder with {split}.json (or {split}_*.json of another release), or, for the
            test split, llava_test.jsonl; images in {split}/. Or a hub id of parquet records.

    Raises:
        UserError: naming the file and the record that cannot be used.
    """
    if not is_local(source):
        return _from_hub(str(source), split)
    folder = expanded(source)
    files = [folder / f"{split}.json", *sorted(folder.glob(f"{split}_*.json"))]
    existing = [file for file in files if file.is_file()]
    asked = folder / f"llava_{split}.jsonl"
    if existing:
        values = read_json(existing[0])
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise UserError("is no list of annotations", where=str(existing[0]))
        rows = [Row(value, f"{existing[0]}, entry {n}") for n, value in enumerate(values, start=1)]
        photos = [_annotated(n, row, folder / split) for n, row in enumerate(rows)]
    elif asked.is_file():
        photos = [
            Photo(
                id=row.identity("question_id"),
                text=row.text("text"),
                image=folder / split / row.text("image"),
                name=row.text("image"),
            )
            for row in read_lines(asked)
        ]
    elif has_parquet(folder):
        return _from_hub(str(folder), split)
    else:
        raise UserError(f"holds neither {split}.json nor llava_{split}.jsonl", where=str(folder))
    require_distinct(photos, str(folder))
    return photos


def _annotated(number: int, row: Row, images: Path) -> Photo:
    name = row.text("image")
    answers = row.values.get("answers")
    if answers is not None:
        if not isinstance(answers, list) or len(answers) != ANSWERS:
            raise UserError(f"answers must be a list of {ANSWERS}", where=row.where)
        if not all(
            isinstance(answer, dict) and isinstance(answer.get("answer"), str) for answer in answers
        ):
            raise UserError("an answer has no text", where=row.where)
    return Photo(
        id=str(number),
        text=question_text(row.text("question")),
        image=images / name,
        name=name,
        answers=_answers(row),
        answer_type=row.text("answer_type") if answers is not None else "",
    )


def _answers(row: Row) -> tuple[str, ...]:
    """The texts of the ten answers; none where the split has none."""
    answers = row.values.get("answers") or []
    if not isinstance(answers, list) or len(answers) not in (0, ANSWERS):
        raise UserError(f"answers must be a list of {ANSWERS}", where=row.where)
    texts = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
    if not all(isinstance(text, str) for text in texts):
        raise UserError("an answer has no text", where=row.where)
    return tuple(map(str, texts))


def _from_hub(source: str, split: str) -> list[Photo]:
    photos = []
    for number, row in enumerate(hub_rows(source, None, split)):
        name = row.identity("question_id", "image_id")
        photos.append(
            Photo(
                id=str(number),
                text=question_text(row.text("question")),
                image=picture(row.value("image"), row.where),
                name=name if name.endswith(".jpg") else f"{name}.jpg",
                answers=_answers(row),
                answer_type=str(row.values.get("category", "")),
            )
        )
    return photos
