"""The LLaVA around a pretrained language model: what it keeps, what it adds, what it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from efficientllava.data.encoding import answer_tokens
from efficientllava.data.prompts import chat_prompt, format_prompt
from efficientllava.demo.pretrained import training
from efficientllava.demo.pretrained.llava import BRIDGE, bridge_of, build_llava, load_bridge
from efficientllava.demo.pretrained.training import BridgeRecipe, train_bridge
from efficientllava.errors import UserError
from efficientllava.files import load_tensors, save_tensors
from efficientllava.models.checkpoint import (
    check_tokenizer,
    load_model,
    load_processor,
    save_checkpoint,
)
from efficientllava.progress import silent

RECIPE = BridgeRecipe(vision_steps=2, pictures=100, steps=3, batch=2)


def test_text_gets_the_logits_of_the_language_model(language_model: Any, tokenizer: Any) -> None:
    ids = tokenizer("What is 17 times 4?", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = language_model(input_ids=ids).logits
        model, processor = build_llava(language_model, tokenizer)
        found = model(input_ids=ids).logits
    assert found.shape[-1] % 64 == 0
    assert torch.equal(found[..., : expected.shape[-1]], expected)
    check_tokenizer(processor, model, "here")


def test_a_saved_checkpoint_answers_about_a_picture(
    language_model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """Plain files: the chat template and the tokens are the same after loading."""
    model, processor = build_llava(language_model, tokenizer)
    save_checkpoint(model, processor, tmp_path / "model")
    loaded, again = load_model(tmp_path / "model"), load_processor(tmp_path / "model")
    prompt = chat_prompt(again, "Which shape is red?", again.image_token)
    assert prompt == (
        "<|im_start|>user\n<image>\nWhich shape is red?<|im_end|>\n<|im_start|>assistant\nAnswer:"
    )
    picture = Image.new("RGB", (40, 30), "red")
    both = (processor, again)
    given = [each(text=[prompt], images=[picture], return_tensors="pt") for each in both]
    assert all(torch.equal(given[0][name], given[1][name]) for name in given[0])
    assert int((given[1]["input_ids"] == model.config.image_token_id).sum()) == 16
    with torch.no_grad():
        assert torch.equal(model(**given[0]).logits, loaded(**given[1]).logits)


def test_digits_are_tokens_of_their_own(tokenizer: Any) -> None:
    tokens = tokenizer("17 times 405")["input_ids"]
    assert sum(tokenizer.decode([token]).strip().isdigit() for token in tokens) == 5


def test_answers_are_single_tokens_behind_the_prompt(language_model: Any, tokenizer: Any) -> None:
    _, processor = build_llava(language_model, tokenizer)
    prompt = chat_prompt(processor, format_prompt("Which colour?", ("red", "blue"), ""), "<image>")
    found = answer_tokens(processor, prompt, ["red", "blue"])
    assert all(kept and len(tokens) == 1 for tokens, kept in found)


def test_training_changes_the_bridge_alone_and_resumes_to_the_same_bytes(
    language_model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_KEEP_EVERY", 1)
    model, processor = build_llava(language_model, tokenizer)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    train_bridge(model, processor, RECIPE, tmp_path / "whole", silent)
    whole = {name: weight.clone() for name, weight in bridge_of(model).items()}
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]) == (name not in whole) or "post_layernorm" in name

    def stop(event: Any) -> None:
        if event.name == "answer step" and event.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_bridge(model, processor, RECIPE, tmp_path / "parts", stop)
    torch.manual_seed(77)
    events: list[Any] = []
    train_bridge(model, processor, RECIPE, tmp_path / "parts", events.append)
    assert [(event.name, event.done) for event in events] == [("answer step", 3)]
    assert all(torch.equal(weight, whole[name]) for name, weight in bridge_of(model).items())


def test_the_answer_loss_is_that_of_the_whole_model(
    language_model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 both; padding on the right changes nothing."""
    import random

    from efficientllava.demo.questions.generator import PICTURE_GROUNDS, draw_item

    model, processor = build_llava(language_model, tokenizer)
    draw = random.Random(1)
    items = [draw_item(draw, "train", PICTURE_GROUNDS) for _ in range(5)]
    frozen = model.model.language_model.to(torch.bfloat16)
    model.model.vision_tower.float()
    with torch.no_grad():
        together = training._answer_loss(model, processor, frozen, items)
        alone = [training._answer_loss(model, processor, frozen, [item]) for item in items]
    assert together.item() == pytest.approx(torch.stack(alone).mean().item(), rel=2e-2)


def test_a_bridge_of_another_model_is_refused(
    language_model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    model, _ = build_llava(language_model, tokenizer)
    save_tensors(tmp_path / "other.safetensors", {"model.vision_tower.x": torch.zeros(2)})
    with pytest.raises(UserError, match="holds other weights"):
        load_bridge(model, tmp_path / "other.safetensors")


def test_the_bridge_that_is_shipped_is_small_and_finite() -> None:
    weights = load_tensors(BRIDGE)
    assert BRIDGE.stat().st_size < 3_000_000
    assert all(bool(weight.isfinite().all()) for weight in weights.values())
    assert weights["model.multi_modal_projector.linear_2.weight"].shape == (576, 576)
