"""Batched greedy answers: the tokens of batch size 1, and no question asked twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from efficientllava.benchmarks.generation import Asked, generate_answers, generated_tokens
from efficientllava.benchmarks.journal import Journal
from efficientllava.benchmarks.records import Record
from efficientllava.progress import Event, silent
from tests.export.conftest import tiny_model, tiny_processor

NEW = 8


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture
def asked(tmp_path: Path) -> list[Asked]:
    generator = np.random.default_rng(0)
    questions = []
    for number in range(9):
        words = " ".join(f"w{n}" for n in generator.integers(0, 59, 1 + 3 * (number % 4)))
        image = None
        if number % 3:
            image = tmp_path / f"{number}.png"
            pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(image)
        prompt = f"<image> {words}" if image else words
        questions.append(Asked(Record(str(number), words, image), prompt))
    return questions


def test_batches_give_the_tokens_of_single_questions(model: Any, asked: list[Asked]) -> None:
    processor = tiny_processor()
    single = [generated_tokens(model, processor, [each], NEW)[0] for each in asked]
    assert len({tuple(tokens.tolist()) for tokens in single}) > 3
    for size in (2, 4, 9):
        for start in range(0, len(asked), size):
            batch = generated_tokens(model, processor, asked[start : start + size], NEW)
            for tokens, alone in zip(batch, single[start : start + size], strict=True):
                assert torch.equal(tokens[: len(alone)], alone)
                assert not tokens[len(alone) :].any()  # padding after the end


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_without_asking_twice(
    model: Any, asked: list[Asked], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor, work = tiny_processor(), tmp_path / "work" / "answers.jsonl"
    whole = generate_answers(
        model, processor, asked, 4, NEW, Journal(tmp_path / "other"), "m", silent
    )

    def stop(event: Event) -> None:
        raise Killed

    with pytest.raises(Killed):
        generate_answers(model, processor, asked, 4, NEW, Journal(work), "m", stop)
    with open(work, "a") as file:
        file.write('{"key": "cut o')  # a kill in the middle of a line
    asked_again = []
    generate = model.generate
    monkeypatch.setattr(
        model, "generate", lambda **k: asked_again.append(len(k["input_ids"])) or generate(**k)
    )
    events: list[Event] = []
    resumed = generate_answers(model, processor, asked, 4, NEW, Journal(work), "m", events.append)
    assert resumed == whole and sum(asked_again) == len(asked) - 4
    assert [event.done for event in events] == [8, 9]
    asked_again.clear()
    assert generate_answers(model, processor, asked, 2, NEW, Journal(work), "m", silent) == whole
    assert asked_again == []
    generate_answers(model, processor, asked, 9, NEW, Journal(work), "another", silent)
    assert asked_again == [9]
