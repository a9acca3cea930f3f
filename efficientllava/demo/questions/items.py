"""A generated question, and which split it belongs to.

The split is decided by a hash of what a question is about: its picture, else its text, else the
question with its choices. Drawing for a split rejects what belongs to another, so the splits are
disjoint by construction.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from efficientllava.demo.questions.facts import Stage, Subject
from efficientllava.demo.questions.pictures import Picture

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Item:
    """A generated question; `answer` is one of `choices`, all of them single words."""

    subject: Subject
    stage: Stage
    topic: str
    skill: str
    question: str
    answer: str
    choices: tuple[str, ...]
    solution: str
    hint: str = ""
    picture: Picture | None = None

    @property
    def key(self) -> str:
        """The key of the split. The order of choices or of a text's words does not matter."""
        if self.picture is not None:
            return self.picture.key
        if self.hint:
            return "text " + " ".join(sorted(re.findall(r"\w+", self.hint.lower())))
        return f"{self.question} {' '.join(sorted(self.choices))}".lower()


def split_of(key: str) -> str:
    """The split of everything with this key: 75 % train, 10 % val, 15 % test."""
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 100
    return "train" if share < 75 else "val" if share < 85 else "test"


Ask = Callable[[random.Random], Item]  # a question about a ground that is already drawn
Ground = Callable[[random.Random], Ask]  # draws a picture, a text or nothing to ask about


def offer(
    draw: random.Random, answer: str, pool: Iterable[str], count: int | None = None
) -> tuple[str, ...]:
    """The answer among three to five distinct choices from a pool, in random order."""
    others = [word for word in dict.fromkeys(pool) if word != answer]
    count = min(count or draw.choice((3, 4, 4, 5)), len(others) + 1)
    choices = [*draw.sample(others, count - 1), answer]
    draw.shuffle(choices)
    return tuple(choices)
