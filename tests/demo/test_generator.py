"""The demo questions: disjoint splits, one right answer each, enough of every class."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from efficientllava.benchmarks.scienceqa.scores import BREAKDOWNS
from efficientllava.data.images import image_bytes
from efficientllava.data.questions import read_questions
from efficientllava.demo.questions.facts import RELATIONS
from efficientllava.demo.questions.generator import draw_conversation, draw_item, question_words
from efficientllava.demo.questions.items import SPLITS, Item, split_of
from efficientllava.demo.questions.layout import write_questions
from efficientllava.demo.questions.pictures import COLOURS, draw_digit, draw_map, draw_scene
from efficientllava.files import folder_digest
from efficientllava.parameters import DemoParameters
from efficientllava.progress import silent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 training, 300 validation and as many test questions as by default."""
    folder = tmp_path_factory.mktemp("demo") / "questions"
    write_questions(folder, DemoParameters(train_questions=600, validation_questions=300), silent)
    return folder


@pytest.fixture(scope="module")
def items() -> dict[str, list[Item]]:
    return {
        split: [draw_item(draw, split) for draw in [random.Random(7)] for _ in range(600)]
        for split in SPLITS
    }


def contents(folder: Path, split: str) -> set[tuple[object, ...]]:
    """What makes a question of a split: its text, its choices in any order, its pixels."""
    return {
        (
            each.question,
            each.hint,
            tuple(sorted(each.choices)),
            None if each.image is None else image_bytes(each.image),
        )
        for each in read_questions(folder, split)
    }


def test_written_splits_share_no_question_picture_or_text(folder: Path) -> None:
    splits = {split: contents(folder, split) for split in SPLITS}
    assert {split: len(found) for split, found in splits.items()} == {
        "train": 600,
        "val": 300,
        "test": 3000,
    }
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not splits[one] & splits[other]
        pictures = [{found[3] for found in splits[name]} - {None} for name in (one, other)]
        assert not pictures[0] & pictures[1]
        stories = [
            {found[1] for found in splits[name] if found[3] is None} - {""} for name in (one, other)
        ]
        assert not stories[0] & stories[1]


def test_handwritten_digits_are_split_by_their_source(items: dict[str, list[Item]]) -> None:
    sources = [
        {item.picture.key for item in items[split] if item.picture and item.picture.kind == "digit"}
        for split in SPLITS
    ]
    assert all(sources)
    assert (
        not sources[0] & sources[1] and not sources[0] & sources[2] and not sources[1] & sources[2]
    )


def test_training_conversations_hold_nothing_of_other_splits() -> None:
    draw = random.Random(3)
    for _ in range(300):
        items = draw_conversation(draw, "train", 4)
        assert 1 <= len(items) <= 4
        assert {split_of(item.key) for item in items} == {"train"}


def test_order_of_choices_does_not_change_the_split() -> None:
    item = next(item for item in iter(lambda: draw_item(random.Random(1), "test"), None))
    draw = random.Random(5)
    while item.picture or item.hint:
        item = draw_item(draw, "test")
    turned = Item(**{**vars(item), "choices": item.choices[::-1]})
    assert turned.key == item.key


def test_each_question_has_one_right_answer(items: dict[str, list[Item]]) -> None:
    facts = {
        template: relation
        for relation in RELATIONS
        for template in (relation.forward, relation.backward)
        if template
    }
    checked = 0
    for item in [item for split in SPLITS for item in items[split]]:
        assert item.answer in item.choices
        assert len(set(item.choices)) == len(item.choices) >= 2
        for template, relation in facts.items():
            pattern = re.escape(template).replace(r"\{key\}", "(.+)").replace(r"\{value\}", "(.+)")
            asked = re.fullmatch(pattern, item.question)
            if asked is None or item.skill != relation.skill:
                continue
            forward = template == relation.forward
            right = {
                value if forward else key
                for key, value in relation.pairs
                if asked[1] == (key if forward else value)
            }
            assert set(item.choices) & right == {item.answer}
            checked += 1
    assert checked > 300


def test_choices_and_questions_are_words_of_the_vocabulary(items: dict[str, list[Item]]) -> None:
    known = set(re.findall(r"\w+", " ".join(question_words()).lower()))
    for item in [item for split in SPLITS for item in items[split]]:
        assert all(re.fullmatch(r"[A-Za-z]+|[0-9]+", choice) for choice in item.choices)
        text = f"{item.question} {item.hint} {' '.join(item.choices)}".lower()
        assert set(re.findall(r"\w+", text)) <= known


def test_every_class_has_at_least_150_test_questions(folder: Path) -> None:
    questions = read_questions(folder, "test")
    counts = {name: sum(map(belongs, questions)) for name, belongs in BREAKDOWNS.items()}
    assert min(counts.values()) >= 150, counts
    assert any(each.hint and each.image for each in questions)  # TXT and IMG overlap


def test_records_have_the_official_fields(folder: Path) -> None:
    problems = json.loads((folder / "problems.json").read_text())
    official = {
        "question", "choices", "answer", "hint", "image", "task", "grade", "subject", "topic",
        "category", "skill", "lecture", "solution", "split",
    }  # fmt: skip
    assert all(set(record) == official for record in problems.values())
    splits = json.loads((folder / "pid_splits.json").read_text())
    assert {split: len(ids) for split, ids in splits.items()} == {
        "train": 600,
        "val": 300,
        "test": 3000,
    }


def test_same_seed_same_bytes_other_seed_other_questions(tmp_path: Path) -> None:
    small = {"train_questions": 20, "validation_questions": 10, "test_questions": 20}
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        write_questions(tmp_path / name, DemoParameters(seed=seed, **small), silent)
    digests = [folder_digest(tmp_path / name) for name in ("one", "again", "other")]
    assert digests[0] == digests[1] != digests[2]


def test_pictures_show_what_they_say() -> None:
    digits, draw = load_digits(), random.Random(0)
    cells = [(slice(top, top + 16), slice(left, left + 16)) for top in (0, 16) for left in (0, 16)]
    likeness = []  # not 1, because digits are shifted and enlarged
    for _ in range(50):
        digit = draw_digit(draw)
        source = int(digit.key.split()[1])
        assert digit.digit == digits.target[source]
        shown = np.asarray(Image.fromarray(digit.pixels).convert("L").resize((8, 8)), dtype=float)
        original = digits.images[source]
        likeness.append(np.corrcoef(shown.ravel(), original.ravel())[0, 1])
        for picture in (draw_scene(draw), draw_map(draw)):
            for cell, colour in zip(cells, picture.colours, strict=True):
                brightest = max(picture.pixels[cell].reshape(-1, 3).astype(float), key=sum)
                if colour is None:
                    assert np.ptp(brightest) == 0  # nothing but the grey background
                    continue
                paint = np.array(COLOURS[colour], dtype=float)
                cosine = brightest @ paint / np.linalg.norm(brightest) / np.linalg.norm(paint)
                if picture.kind == "scene":
                    assert cosine > 0.999
    assert np.mean(likeness) > 0.5
