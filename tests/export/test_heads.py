"""Padded heads compute the same, with a cache and without."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from efficientllava.export.graphs.heads import padded_width, with_padded_heads
from tests.export.conftest import tiny_model


def model_with_heads(width: int, heads: int, kv_heads: int) -> LlavaForConditionalGeneration:
    text = LlamaConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        initializer_range=0.3,
        attention_bias=True,
    )
    torch.manual_seed(1)
    vision = tiny_model().config.vision_config
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text))
    for name, parameter in model.named_parameters():
        if name.endswith("_proj.bias"):
            torch.nn.init.normal_(parameter)
    return model.eval()


@pytest.mark.parametrize(("width", "heads", "kv_heads"), [(40, 2, 2), (40, 4, 2), (72, 3, 1)])
@torch.no_grad()
def test_same_logits_and_same_tokens(width: int, heads: int, kv_heads: int) -> None:
    model = model_with_heads(width, heads, kv_heads)
    padded = with_padded_heads(model)
    assert padded is not model
    ids = torch.randint(5, 64, (2, 12), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        padded(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-4
    )
    greedy = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(padded.generate(ids, **greedy), model.generate(ids, **greedy))


def test_widths_that_work_stay() -> None:
    assert [padded_width(width) for width in (8, 10, 16, 20, 32, 40, 64, 80, 128)] == [
        8, 16, 16, 32, 32, 48, 64, 80, 128,
    ]  # fmt: skip
    model = tiny_model()
    assert with_padded_heads(model) is model
