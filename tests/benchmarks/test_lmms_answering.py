"""Questions of lmms-eval put to every family: several pictures, batches, ends; no package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efficientllava.benchmarks.engines.lmms_eval.answering import Answering, LmmsQuestion
from efficientllava.errors import UserError
from efficientllava.models.families import family_of
from efficientllava.models.source import NEEDS_IMAGES
from tests.data.test_chat_templates import chats
from tests.models.families import TINY
from tests.models.families.by_hand import ByHand

GENERATOR = np.random.default_rng(0)
PICTURES = [
    Image.fromarray(GENERATOR.integers(0, 255, (40, 56, 3), dtype=np.uint8)) for _ in range(3)
]


def question(number: int, pictures: list[Image.Image], text: str, **given: Any) -> LmmsQuestion:
    parts = [*({"type": "image"} for _ in pictures), {"type": "text", "text": text}]
    turns = [{"role": "user", "content": parts}]
    digest = "-".join(str(PICTURES.index(picture)) for picture in pictures)
    return LmmsQuestion(f"t/{number}", turns, digest, lambda: pictures, 4, **given)


@pytest.mark.parametrize("name", TINY)
def test_batches_with_no_one_and_two_pictures_equal_single_questions(
    name: str, tmp_path: Path
) -> None:
    model, _ = TINY[name].build()
    processor, _ = chats(name)
    if isinstance(processor, ByHand):
        pytest.skip("its own processor needs torchvision")
    asked = [question(2, [], "w4 w5 w6"), question(4, [], "w8")]
    if family_of(model.config).takes_images:
        if model.config.model_type in NEEDS_IMAGES:
            asked = []
        asked.insert(0, question(0, PICTURES[:1], "w1 w2"))
        asked += [question(1, PICTURES[:2], "w3"), question(3, PICTURES[2:], "w7")]
    continuations = ["w1", "w2 w3", " w4", "w5", "w6 w7"][: len(asked)]
    given = [Answering(model.eval(), processor, "", tmp_path / f"{n}", n) for n in (1, 5)]
    single, batch = [each.answers(asked) for each in given]
    assert single == batch and len(single) == len(asked)
    single_losses, batch_losses = [each.losses(asked, continuations) for each in given]
    for one, other in zip(single_losses, batch_losses, strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-4) and one[1] == other[1]


def test_a_text_only_model_is_asked_no_picture(tmp_path: Path) -> None:
    model, _ = TINY["qwen3"].build()
    answering = Answering(model.eval(), chats("qwen3")[0], "", tmp_path / "answers")
    with pytest.raises(UserError, match="t/7: has a picture, and the model takes none"):
        answering.answers([question(7, PICTURES[:1], "w1")])


def test_a_model_that_needs_a_picture_is_told_before_any_answer(tmp_path: Path) -> None:
    model, _ = TINY["paligemma"].build()
    answering = Answering(model.eval(), chats("paligemma")[0], "", tmp_path / "answers")
    with pytest.raises(UserError, match="t/8: has no picture, and the model takes no question"):
        answering.answers([question(7, PICTURES[:1], "w1"), question(8, [], "w2")])
    assert not (tmp_path / "answers").exists()


def test_an_answer_ends_before_the_first_stop_of_its_task(tmp_path: Path) -> None:
    model, _ = TINY["llava"].build()
    answering = Answering(model.eval(), chats("llava")[0], "", tmp_path / "answers")
    [whole] = answering.answers([question(0, PICTURES[:1], "w1")])
    first, second, *_ = whole.split()
    [cut] = answering.answers([question(0, PICTURES[:1], "w1", stops=("none", second))])
    assert whole.startswith(cut) and second not in cut.split() and cut != whole
    limited = Answering(model, answering.processor, "", tmp_path / "answers", new_tokens=1)
    assert limited.answers([question(0, PICTURES[:1], "w1")]) == [first]
