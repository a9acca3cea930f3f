"""A LLaVA of three narrow decoder blocks with random weights, and proxy data for it."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

# before anything imports triton, as transformers does: without a card the kernels are interpreted
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from efficientllava.data.proxy import IGNORED, Pairs, ProxyData
from efficientllava.models.families import Adapter, adapter_for

IMAGE_TOKENS = 4


def random_llava(seed: int = 0, **text_changes: Any) -> LlavaForConditionalGeneration:
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    values: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
    }
    text = LlamaConfig(**{**values, **text_changes})
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=4, vision_feature_layer=-1
    )
    return LlavaForConditionalGeneration(config).eval()


def random_proxy(pairs: int = 12, segments: int = 8, seed: int = 1) -> ProxyData:
    """Segments of 16 tokens; pairs with prompts of different lengths, one or two answer tokens."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(5, 64, (segments, 16), generator=generator)
    if pairs == 0:
        return ProxyData(text, None)
    length = IMAGE_TOKENS + 8
    ids = torch.zeros(pairs, length, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for row in range(pairs):
        prompt, answer = 4 + row % 3, 1 + row % 2
        words = torch.randint(5, 64, (prompt + answer,), generator=generator)
        tokens = torch.cat([torch.full((IMAGE_TOKENS,), 4), words])
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
        labels[row, len(tokens) - answer : len(tokens)] = tokens[-answer:]
    pixels = torch.randn(pairs, 3, 16, 16, generator=generator)
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
    return ProxyData(text, Pairs(inputs, labels))


@pytest.fixture
def adapter() -> Adapter:
    return adapter_for(random_llava())


@pytest.fixture
def proxy() -> ProxyData:
    return random_proxy()
