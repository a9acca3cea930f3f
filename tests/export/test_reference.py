"""`ask`, parity and serving put a prompt to a model as evaluation does: one encoding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from efficientllava.benchmarks.generation import Asked, generated_tokens
from efficientllava.benchmarks.records import Record
from efficientllava.export.assistant import graph_inputs
from efficientllava.export.decoding import Prompt
from efficientllava.export.reference import encoded, reference_answer
from efficientllava.models.checkpoint import load_model, load_processor, save_checkpoint
from efficientllava.models.families import family_of
from tests.models.families import TINY


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("name", ["paligemma", "llava", "qwen2"])
def test_tokens_are_those_of_evaluation(name: str, picture: Path, tmp_path: Path) -> None:
    """PaliGemma reads its prompt in both directions, which its token types say."""
    save_checkpoint(*TINY[name].build(), tmp_path / "model")
    model, processor = load_model(tmp_path / "model"), load_processor(tmp_path / "model")
    family = family_of(model.config)
    image = picture if family.takes_images else None
    text = f"{family.image_token} w1 w2 w3".strip()
    ours = reference_answer(model, processor, Prompt(text, image), 4).tokens
    record = Record("1", text, image)
    assert ours == generated_tokens(model, processor, [Asked(record, text)], 4)[0].tolist()
    assert ("token_type_ids" in encoded(model, processor, Prompt(text, image))) == (
        name == "paligemma"
    )


def test_a_template_s_first_token_stands_once() -> None:
    """A chat template writes the token that begins a text; the tokenizer must not add another."""
    model, processor = TINY["llava"].build()
    tokenizer = processor.tokenizer
    tokenizer.bos_token = "w7"
    begin = tokenizer.convert_tokens_to_ids("w7")

    class Beginning(type(tokenizer)):
        """As Llama's tokenizer: the token goes before every text with special tokens."""

        def __call__(self, texts, add_special_tokens=True, **settings):
            texts = [f"w7 {text}" for text in texts] if add_special_tokens else texts
            return super().__call__(texts, add_special_tokens=add_special_tokens, **settings)

    tokenizer.__class__ = Beginning
    for text, count in (("w7 w1 w2", 1), ("w1 w2", 1), ("w7 w7 w2", 2)):
        prompt = Prompt(text, None)
        ids = encoded(model, processor, prompt)["input_ids"]
        assert int((ids == begin).sum()) == count
        assert torch.equal(ids[0], torch.from_numpy(graph_inputs(processor, prompt).input_ids))
