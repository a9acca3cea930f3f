"""A random LLaVA and random proxy data of any size, made on the device that is measured."""

from __future__ import annotations

import argparse
from pathlib import Path


def build(wanted: argparse.Namespace, folder: Path) -> None:
    """Write the random checkpoint and the random proxy data."""
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    from efficientllava.data.proxy import IGNORED, Pairs, ProxyData, save_proxy

    torch.manual_seed(0)
    side, patch = (28, 14) if wanted.small_tower else (336, 14)
    vision = CLIPVisionConfig(
        hidden_size=32 if wanted.small_tower else 1024,
        intermediate_size=64 if wanted.small_tower else 4096,
        num_hidden_layers=2 if wanted.small_tower else 24,
        num_attention_heads=2 if wanted.small_tower else 16,
        image_size=side,
        patch_size=patch,
        projection_dim=32 if wanted.small_tower else 768,
    )
    heads = max(wanted.width // 128, 1)
    images, words = (side // patch) ** 2, 32
    text = LlamaConfig(
        vocab_size=wanted.vocabulary,
        hidden_size=wanted.width,
        intermediate_size=wanted.mlp,
        num_hidden_layers=wanted.blocks,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max(2048, wanted.length),
        tie_word_embeddings=False,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=4)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(wanted.device):
        model = LlavaForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder / "model")
    segments = torch.randint(5, wanted.vocabulary, (wanted.segments, wanted.length))
    ids = torch.randint(5, wanted.vocabulary, (wanted.pairs, images + words))
    ids[:, :images] = 4
    labels = torch.full_like(ids, IGNORED)
    labels[:, -2:] = ids[:, -2:]
    pixels = torch.randn(wanted.pairs, 3, side, side)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    save_proxy(folder / "proxy", ProxyData(segments, Pairs(inputs, labels)), {})
