"""Writes the demo question set in ScienceQA's official layout."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from PIL import Image

from efficientllava.data.questions import PROBLEMS, SPLITS
from efficientllava.demo.questions.generator import draw_item
from efficientllava.demo.questions.items import Item
from efficientllava.files import replacing, write_json
from efficientllava.parameters import DemoParameters
from efficientllava.progress import Event, Progress

_IMAGE = "image.png"
_LECTURE = "Look at the picture or read the text, then compare every option with what it says."


def write_questions(folder: Path, parameters: DemoParameters, progress: Progress) -> None:
    """Draw the questions of all splits and write problems.json, pid_splits.json and images.

    No question occurs twice; the same parameters give the same bytes.
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
        for split, count in counts.items():
            splits[split] = []
            for item in _distinct_items(split, count, parameters.seed):
                identifier = str(len(problems) + 1)
                problems[identifier] = _record(item, split)
                splits[split].append(identifier)
                if item.picture is not None:
                    target = temporary / "images" / split / identifier
                    target.mkdir(parents=True)
                    Image.fromarray(item.picture.pixels).save(target / _IMAGE)
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
