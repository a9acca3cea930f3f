"""Draws the demo questions: a ground (a picture, a text or nothing) and questions about it."""

from __future__ import annotations

import random
from collections.abc import Iterator

from efficientllava.demo.questions.fact_questions import arithmetic_ground, fact_ground, fact_words
from efficientllava.demo.questions.items import Ask, Ground, Item, split_of
from efficientllava.demo.questions.picture_questions import digit_ground, map_ground, scene_ground
from efficientllava.demo.questions.text_questions import clue_ground, table_ground, text_words

Weighted = tuple[tuple[Ground, int], ...]

DRAWN_GROUNDS: Weighted = ((scene_ground, 28), (map_ground, 4))
PICTURE_GROUNDS: Weighted = ((scene_ground, 28), (digit_ground, 10), (map_ground, 4))
TEXT_GROUNDS: Weighted = (
    (fact_ground, 26),
    (arithmetic_ground, 10),
    (clue_ground, 12),
    (table_ground, 5),
)
GROUNDS: Weighted = PICTURE_GROUNDS + TEXT_GROUNDS


def draw_item(draw: random.Random, split: str, grounds: Weighted = GROUNDS) -> Item:
    """One question of a split, about one of the grounds."""
    while True:
        item = _draw_ground(draw, grounds)(draw)
        if split_of(item.key) == split:
            return item


def picture_items(count: int, seed: int) -> list[Item]:
    """Distinct questions about drawn pictures, of the training split; `count` of them.

    Scenes and maps only: the handwritten digits are scikit-learn's, which not everybody has.
    """
    draw = random.Random(f"pictures {seed}")
    items: dict[tuple[str, frozenset[str], bytes], Item] = {}
    while len(items) < count:
        item = _draw_ground(draw, DRAWN_GROUNDS)(draw)
        if item.picture is not None and split_of(item.key) == "train":
            key = (item.question, frozenset(item.choices), item.picture.pixels.tobytes())
            items.setdefault(key, item)
    return list(items.values())


def draw_conversation(
    draw: random.Random, split: str, length: int, pictures: bool = True
) -> list[Item]:
    """Different questions of a split about the same ground, at most `length`."""
    while True:
        ask = _draw_ground(draw, GROUNDS if pictures else TEXT_GROUNDS)
        items: list[Item] = []
        for _ in range(length * 4):
            item = ask(draw)
            known = any(item.question == other.question for other in items)
            if not known and split_of(item.key) == split:
                items.append(item)
                if len(items) == length:
                    break
        if items:
            return items


def _draw_ground(draw: random.Random, weighted: Weighted) -> Ask:
    grounds, weights = zip(*weighted, strict=True)
    ground: Ground = draw.choices(grounds, weights)[0]
    return ground(draw)


def question_words() -> Iterator[str]:
    """Texts that together hold every word of every question, for the tokenizer's vocabulary."""
    draw = random.Random(0)
    for ground, _ in GROUNDS:
        for _ in range(300):
            item = ground(draw)(draw)
            yield " ".join((item.question, item.hint, *item.choices))
    yield from fact_words()
    yield from text_words()
