"""Prompts and their tokens are what `apply_chat_template` gives, for every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from efficientllava.data.conversations import CONVERSATIONS
from efficientllava.data.encoding import encode_answered, encode_prompt
from efficientllava.data.prompts import (
    asks_as_vicuna,
    chat_prompt,
    choose_template,
    conversation_prompt,
)
from efficientllava.errors import UserError
from efficientllava.models.families import FAMILIES
from efficientllava.models.processors.text_processor import TextProcessor
from tests.models.families import TINY
from tests.models.families.by_hand import ByHand

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 20, 3), dtype=np.uint8))


def template(token: str, begin: str = "") -> str:
    """A chat template of parts, as processors have one, and of text, as tokenizers have one."""
    return (
        f"{begin}{{% for message in messages %}}w40 {{% if message.content is string %}}"
        "{{ message.content }}{% else %}{% for part in message.content %}"
        f"{{% if part.type == 'image' %}}{token}\n{{% else %}}{{{{ part.text }}}}{{% endif %}}"
        "{% endfor %}{% endif %} w41\n{% endfor %}"
        "{% if add_generation_prompt %}w42 w43\n{% endif %}"
    )


def chats(name: str, begin: str = "") -> tuple[Any, str]:
    """A family's processor with a template of its own, and the token of its images."""
    processor: Any = TINY[name].processor()
    family = FAMILIES[TINY[name].build()[0].config.model_type]
    owner = processor.tokenizer if isinstance(processor, TextProcessor) else processor
    owner.chat_template = template(family.image_token, begin)
    return processor, family.image_token


@pytest.mark.parametrize("begin", ["", "<s>"])
@pytest.mark.parametrize("name", TINY)
def test_prompt_and_tokens_are_the_processors_own(name: str, begin: str) -> None:
    processor, token = chats(name, begin)
    if isinstance(processor, ByHand):
        pytest.skip("its own processor needs torchvision")
    tokenizer = processor.tokenizer
    if isinstance(processor, TextProcessor):
        turns: list[Any] = [{"role": "user", "content": "w1 w2"}]
        own = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        ids = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        prompt, image = chat_prompt(processor, "w1 w2", None), None
    else:
        parts = [{"type": "image", "image": PICTURE}, {"type": "text", "text": "w1 w2"}]
        turns = [{"role": "user", "content": parts}]
        own = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        ids = processor.apply_chat_template(
            turns,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        prompt, image = chat_prompt(processor, "w1 w2", token), PICTURE
    assert prompt == own and "w42 w43" in own
    encoded = encode_prompt(processor, prompt, image).inputs
    assert torch.equal(encoded["input_ids"], ids["input_ids"])
    for key, value in encoded.items():
        assert torch.equal(value, ids[key]), key
    answered = encode_answered(processor, prompt, "w7", image)
    length = encoded["input_ids"].shape[1]
    assert torch.equal(answered.inputs["input_ids"][:, :length], encoded["input_ids"])
    said = answered.inputs["input_ids"][0, -answered.answered :]
    assert tokenizer.decode(said, skip_special_tokens=True).strip() == "w7"


def test_a_template_that_begins_the_text_gets_no_second_beginning() -> None:
    from tokenizers.processors import TemplateProcessing

    processor, token = chats("llava", "<s>")
    begins = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    processor.tokenizer.backend_tokenizer.post_processor = begins
    prompt = chat_prompt(processor, "w1", token)
    encoded = encode_prompt(processor, prompt, PICTURE).inputs["input_ids"][0]
    assert (encoded == 2).sum() == 1
    plain = encode_prompt(processor, f"{token}\nw1", PICTURE).inputs["input_ids"][0]
    assert (plain == 2).sum() == 1


def test_named_templates_and_none() -> None:
    processor, token = chats("llava")
    choose_template(processor, "auto", token, "here")
    assert "w42" in chat_prompt(processor, "w1", token) and not asks_as_vicuna(processor)
    for name in CONVERSATIONS:
        choose_template(processor, name, token, "here")
        assert chat_prompt(processor, "w1", token) == CONVERSATIONS[name].prompt("<image>\nw1")
        assert chat_prompt(processor, "w1", None) == CONVERSATIONS[name].prompt("w1")
        assert asks_as_vicuna(processor)
        system = {"role": "system", "content": [{"type": "text", "text": "w2"}]}
        user = {"role": "user", "content": [{"type": "text", "text": "w1"}]}
        for turns in ([user, user], [system, user], [system]):  # none is left out without a word
            with pytest.raises(UserError, match="one message of the user and no other"):
                conversation_prompt(processor, turns, token)
    processor.chat_template = {"default": template(token), "brief": "w9 {{ messages|length }}"}
    with pytest.raises(UserError, match="no chat template 'long'.*auto, none, brief, default"):
        choose_template(processor, "long", token, "here")
    choose_template(processor, "brief", token, "here")
    assert chat_prompt(processor, "w1", token) == "w9 1"
    processor.chat_template = {"brief": "w9"}
    choose_template(processor, "auto", token, "here")  # none of them is the usual one
    assert chat_prompt(processor, "w1", token) == "<image>\nw1"
    processor.chat_template = {"brief": "w9", "default": "w8"}
    choose_template(processor, "auto", token, "here")
    assert chat_prompt(processor, "w1", token) == "w8"
    choose_template(processor, "none", token, "here")
    assert chat_prompt(processor, "w1", token) == "<image>\nw1" and asks_as_vicuna(processor)


def test_text_only_models_take_named_templates() -> None:
    processor, _ = chats("qwen3")
    for name in CONVERSATIONS:
        choose_template(processor, name, "<image>", "here")
        assert chat_prompt(processor, "w1", None) == CONVERSATIONS[name].prompt("w1")
    choose_template(processor, "none", "<image>", "here")
    assert chat_prompt(processor, "w1", None) == "w1" and not processor.writes_special_tokens


def test_the_tokenizers_template_where_the_processor_has_none() -> None:
    processor, token = chats("llava")
    processor.tokenizer.chat_template, processor.chat_template = processor.chat_template, None
    assert chat_prompt(processor, "w1", token) == "w40 <image>\nw1 w41\nw42 w43\n"


def test_a_template_that_refuses_is_named() -> None:
    processor, token = chats("llava")
    processor.chat_template = "{{ raise_exception('only cats') }}"
    with pytest.raises(UserError, match="refuses a user's message: only cats"):
        chat_prompt(processor, "w1", token)


def test_additional_templates_are_found_in_a_checkpoint(tmp_path: Path) -> None:
    from efficientllava.models.checkpoint import load_processor, save_checkpoint

    model, processor = TINY["llava"].build()
    save_checkpoint(model, processor, tmp_path)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "chat_template.jinja").write_text(template("<image>"))
    (tmp_path / "additional_chat_templates" / "brief.jinja").write_text("w9 {{ bos_token }}")
    assert chat_prompt(load_processor(tmp_path), "w1", "<image>").startswith("w40 <image>\nw1")
    brief = load_processor(tmp_path, chat_template="brief")
    assert chat_prompt(brief, "w1", "<image>") == "w9 <s>"
    with pytest.raises(UserError, match="no chat template 'long'"):
        load_processor(tmp_path, chat_template="long")
