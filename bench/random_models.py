"""Random models and databases of a given size, which the benches of speed share.

Speed depends on shapes and not on what the weights are, and nothing can be downloaded.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

LEVELS = (0.4, 0.45, 0.5, 0.55, 0.6)
HEAD_WIDTH = 64


@dataclass(frozen=True)
class DecoderSize:
    """The size of a decoder: what decides its speed."""

    width: int
    mlp: int
    blocks: int
    vocabulary: int


EMBEDDED_TIMES_4 = DecoderSize(160, 384, 6, 2560)
"""The embedded model, four times as wide."""


def size_options(default: DecoderSize) -> argparse.ArgumentParser:
    """The options of a decoder's size, as a parent of a bench's parser."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--width", type=int, default=default.width, help="of hidden states")
    parser.add_argument("--mlp", type=int, default=default.mlp, help="width of the MLP")
    parser.add_argument("--blocks", type=int, default=default.blocks)
    parser.add_argument("--vocabulary", type=int, default=default.vocabulary)
    return parser


def size_of(wanted: argparse.Namespace) -> DecoderSize:
    """The size that `size_options` read."""
    return DecoderSize(wanted.width, wanted.mlp, wanted.blocks, wanted.vocabulary)


def random_llava(size: DecoderSize, context: int) -> LlavaForConditionalGeneration:
    """A LLaVA whose decoder has the given size, with random weights and the smallest tower."""
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    torch.manual_seed(0)
    heads = max(size.width // HEAD_WIDTH, 1)
    text = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.mlp,
        num_hidden_layers=size.blocks,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
    )
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, vision_feature_layer=-1)
    ).eval()


def magnitude_database(adapter: Any, folder: Path, form: Any) -> Any:
    """A database on disk whose solutions are magnitude masks: its speed is that of a real one.

    Args:
        form: "dense" or "compact", as `pruning.storage`.
    """
    from efficientllava.database import storage
    from efficientllava.database.build import MANIFEST, block_file, level_key, open_database
    from efficientllava.files import file_digest, save_tensors, write_json
    from efficientllava.kernels.masks import magnitude

    records, files = {}, {}
    for block in range(len(adapter.blocks)):
        tensors: dict[str, Any] = {}
        for matrix in (m for group in adapter.of_block(block) for m in group):
            records[matrix.name] = {"block": block, "size": matrix.size, "norm": 1.0, "levels": {}}
            for level in LEVELS:
                key = f"{matrix.name}@{level_key(level)}"
                tensors.update(storage.stored(key, magnitude(matrix.weight, level), form))
        save_tensors(folder / block_file(block), tensors)
        files[block_file(block)] = file_digest(folder / block_file(block))
    write_json(folder / MANIFEST, {"levels": LEVELS, "matrices": records, "files": files})
    return open_database(folder, LEVELS)
