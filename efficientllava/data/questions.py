"""Multiple-choice questions in ScienceQA's official layout.

A folder holds problems.json (id -> record), pid_splits.json (split -> ids) and
images/<split>/<id>/image.png; or the latter in images.zip, one file in place of thousands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from efficientllava.data.images import read_rgb
from efficientllava.errors import UserError
from efficientllava.files import read_json

PROBLEMS = "problems.json"
IMAGES = "images.zip"
SPLITS = "pid_splits.json"
_TEXTS = ("hint", "subject", "grade", "topic", "category", "skill", "lecture", "solution", "task")
_REQUIRED = ("question", "choices", "answer", "hint", "image", "subject", "grade")


@dataclass(frozen=True)
class Question:
    """One record; `answer` is an index into `choices`."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    hint: str
    image: Path | None
    subject: str
    grade: str
    split: str
    topic: str = ""
    category: str = ""
    skill: str = ""
    lecture: str = ""
    solution: str = ""
    task: str = ""

    @property
    def grade_number(self) -> int:
        """7 of "grade7"."""
        return int(self.grade.removeprefix("grade"))

    def open_image(self) -> Image.Image | None:
        """The picture in RGB.

        Raises:
            UserError: the file is missing or no readable image.
        """
        return None if self.image is None else read_rgb(self.image, str(self.image))


def read_questions(folder: Path, split: str) -> list[Question]:
    """Read the questions of a split ("train", "val" or "test"), in the order of pid_splits.json.

    Every image is opened once, so that a broken one is found here and not hours later.

    Raises:
        UserError: naming the file and the record that cannot be used.
    """
    folder = Path(folder)
    if not folder.is_dir():
        remedy = f"name a folder in ScienceQA's layout, with {PROBLEMS} in it"
        raise UserError("no such folder of questions", where=str(folder), remedy=remedy)
    problems = read_json(folder / PROBLEMS)
    if not isinstance(problems, dict):
        raise UserError("is no mapping from id to question", where=str(folder / PROBLEMS))
    questions = []
    for identifier in split_identifiers(folder, split):
        where = f"{folder / PROBLEMS}, question {identifier}"
        if identifier not in problems:
            raise UserError(f"no such question, though {SPLITS} lists it", where=where)
        question = parse_question(identifier, problems[identifier], folder, split, where)
        question.open_image()
        questions.append(question)
    return questions


def split_identifiers(folder: Path, split: str) -> list[str]:
    """The ids of the questions of a split, as pid_splits.json lists them.

    Raises:
        UserError: the file cannot be read or lists no such split.
    """
    splits = read_json(folder / SPLITS)
    if not isinstance(splits, dict) or not isinstance(splits.get(split), list):
        remedy = f'list them, {{"{split}": ["1", ...]}}, or name another split'
        raise UserError(f"has no list of ids for split {split!r}", str(folder / SPLITS), remedy)
    return [str(identifier) for identifier in splits[split]]


def parse_question(identifier: str, record: Any, folder: Path, split: str, where: str) -> Question:
    """One record of problems.json; its image is not opened.

    Args:
        folder: what holds images/<split>/<id>/, or images.zip.
        where: what messages call the record.

    Raises:
        UserError: a field is missing or cannot be used.
    """
    if not isinstance(record, dict):
        raise UserError("is no record of fields", where=where)
    if missing := [name for name in _REQUIRED if name not in record]:
        raise UserError(f"lacks {', '.join(missing)}", where=where)
    if not isinstance(record["question"], str) or not record["question"].strip():
        raise UserError("question is empty or no text", where=where)
    choices, answer, image = record["choices"], record["answer"], record["image"]
    if not isinstance(choices, list) or len(choices) < 2:
        raise UserError("choices must be a list of at least two", where=where)
    if not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise UserError("a choice is empty or no text", where=where)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise UserError(
            f"answer {answer!r} is out of range: there are {len(choices)} choices, counted from 0",
            where=where,
        )
    if image is not None and not isinstance(image, str):
        raise UserError("image must be a file name or null", where=where)
    if not re.fullmatch(r"grade([1-9]|1[0-2])", str(record["grade"])):
        raise UserError(f"grade {record['grade']!r} is none of grade1, ..., grade12", where=where)
    texts = {name: "" if record.get(name) is None else record[name] for name in _TEXTS}
    if wrong := [name for name, text in texts.items() if not isinstance(text, str)]:
        raise UserError(f"{', '.join(wrong)} must be text", where=where)
    if not texts["subject"]:
        raise UserError("subject is empty", where=where)
    return Question(
        id=identifier,
        question=record["question"],
        choices=tuple(choices),
        answer=answer,
        image=image_root(folder) / "images" / split / identifier / image if image else None,
        split=split,
        **texts,
    )


def image_root(folder: Path) -> Path:
    """What holds images/<split>/: a folder of questions, or images.zip in it."""
    archive = folder / IMAGES
    return archive if archive.is_file() and not (folder / "images").is_dir() else folder
