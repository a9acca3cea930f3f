"""Writes the demo question set in ScienceQA's official layout, its images in one archive."""

from __future__ import annotations

import random
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

from PIL import Image

from efficientllava.data.questions import IMAGES, PROBLEMS, SPLITS
from efficientllava.demo.questions.generator import draw_item
from efficientllava.demo.questions.items import Item
from efficientllava.files import replacing, write_json
from efficientllava.parameters import DemoParameters
from efficientllava.progress import Event, Progress

_IMAGE = "image.png"
_LECTURE = "Look at the picture or read the text, then compare every option with what it says."


def write_questions(folder: Path, parameters: DemoParameters, progress: Progress) -> None:
    """Draw the questions of all splits and write problems.json, pid_splits.json and images.zip.

    DVC looks at every file of an output for every stage that reads it: thousands of images in
    folders of their own took 2 s a stage. No question occurs twice; the same parameters give the
    same bytes.
    """
    counts = {
        "train": parameters.train_questions,
        "val": parameters.validation_questions,
        "test": parameters.test_questions,
    }
    total = sum(counts.values())
    problems: dict[str, dict[str, Any]] = {}
    splits: dict[str, list[str]] = {}
    with replacing(Path(folder)) as temporary:
        temporary.mkdir(parents=True)
        # not compressed: PNG is
        with ZipFile(temporary / IMAGES, "w") as images:
            for split, count in counts.items():
                splits[split] = []
                for item in _distinct_items(split, count, parameters.seed):
                    identifier = str(len(problems) + 1)
                    problems[identifier] = _record(item, split)
                    splits[split].append(identifier)
                    if item.picture is not None:
                        picture = BytesIO()
                        Image.fromarray(item.picture.pixels).save(picture, "png")
                        # ZipInfo's time is that of 1980, always the same
                        name = ZipInfo(f"images/{split}/{identifier}/{_IMAGE}")
                        images.writestr(name, picture.getvalue())
                    if len(problems) % 250 == 0 or len(problems) == total:
                        progress(Event("question", len(problems), total))
        write_json(temporary / PROBLEMS, problems)
        write_json(temporary / SPLITS, splits)


def _distinct_items(split: str, count: int, seed: int) -> list[Item]:
    """Questions of a split, no two with the same question, context, choices and picture."""
    draw = random.Random(f"{split} {seed}")
    items: dict[tuple[Any, ...], Item] = {}
    while len(items) < count:
        item = draw_item(draw, split)
        picture = None if item.picture is None else item.picture.pixels.tobytes()
        items.setdefault((item.question, item.hint, frozenset(item.choices), picture), item)
    return list(items.values())


def _record(item: Item, split: str) -> dict[str, Any]:
    grades = range(1, 7) if item.stage == "lower" else range(7, 13)
    grade = random.Random(item.key).choice(grades)
    return {
        "question": item.question,
        "choices": list(item.choices),
        "answer": item.choices.index(item.answer),
        "hint": item.hint,
        "image": None if item.picture is None else _IMAGE,
        "task": "closed choice",
        "grade": f"grade{grade}",
        "subject": item.subject,
        "topic": item.topic,
        "category": item.topic.capitalize(),
        "skill": item.skill,
        "lecture": _LECTURE,
        "solution": item.solution,
        "split": split,
    }
