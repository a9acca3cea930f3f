"""Random models and databases of a given size, which the benches of speed share.

Speed depends on shapes, not on the values of weights; nothing is downloaded.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM, LlavaForConditionalGeneration

    from efficientllava.data.proxy import Pairs

LEVELS = (0.4, 0.45, 0.5, 0.55, 0.6)
IMAGE_TOKEN = 4
ANSWER = 3
"""Tokens of an answer."""


@dataclass(frozen=True)
class DecoderSize:
    """The size of a decoder, which decides its speed."""

    width: int
    mlp: int
    blocks: int
    vocabulary: int
    key_value_heads: int | None = None
    """As many as attention heads if left out."""


DEMO_TIMES_4 = DecoderSize(160, 384, 6, 2560)
"""The demo model, four times as wide."""
SHAPES = {
    "7B": DecoderSize(4096, 11008, 32, 32000),
    "13B": DecoderSize(5120, 13824, 40, 32000),
    "34B": DecoderSize(7168, 20480, 60, 64000, 8),
    "72B": DecoderSize(8192, 29568, 80, 152064, 8),
    "1.1B": DecoderSize(2048, 5632, 22, 32000, 4),
}
"""Decoders by their usual names: LLaVA-1.5 (7B, 13B), LLaVA-NeXT (34B, 72B), TinyLlama."""


@dataclass(frozen=True)
class Tower:
    """The size of a CLIP tower for images of `side` pixels."""

    width: int
    mlp: int
    blocks: int
    heads: int
    side: int
    patch: int

    @property
    def tokens(self) -> int:
        """Tokens of an image."""
        return (self.side // self.patch) ** 2


SMALLEST = Tower(32, 64, 1, 2, 32, 16)
CLIP_LARGE = Tower(1024, 4096, 24, 16, 336, 14)
"""LLaVA-1.5's."""


def size_options(default: DecoderSize) -> argparse.ArgumentParser:
    """The options of a decoder's size, as a parent of a bench's parser."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--width", type=int, default=default.width, help="of hidden states")
    parser.add_argument("--mlp", type=int, default=default.mlp, help="width of the MLP")
    parser.add_argument("--blocks", type=int, default=default.blocks)
    parser.add_argument("--vocabulary", type=int, default=default.vocabulary)
    return parser


def size_of(arguments: argparse.Namespace) -> DecoderSize:
    """The size that `size_options` read."""
    return DecoderSize(arguments.width, arguments.mlp, arguments.blocks, arguments.vocabulary)


def random_llava(
    size: DecoderSize, context: int, tower: Tower = SMALLEST
) -> LlavaForConditionalGeneration:
    """A LLaVA of a size with random weights, of torch's default dtype and device."""
    import torch
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    text = _decoder_config(size, context)
    vision = CLIPVisionConfig(
        hidden_size=tower.width,
        intermediate_size=tower.mlp,
        num_hidden_layers=tower.blocks,
        num_attention_heads=tower.heads,
        image_size=tower.side,
        patch_size=tower.patch,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1 if tower.blocks == 1 else -2,
    )
    return LlavaForConditionalGeneration(config).eval()


def random_decoder(size: DecoderSize, context: int) -> LlamaForCausalLM:
    """A LLaMA of a size with random weights, of torch's default dtype and device."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(_decoder_config(size, context)).eval()


def _decoder_config(size: DecoderSize, context: int) -> LlamaConfig:
    from transformers import LlamaConfig

    # as in LLaMA from 7B on
    heads = max(size.width // (128 if size.width >= 4096 else 64), 1)
    return LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.mlp,
        num_hidden_layers=size.blocks,
        num_attention_heads=heads,
        num_key_value_heads=size.key_value_heads or heads,
        max_position_embeddings=context,
    )


def random_pairs(vocabulary: int, count: int, length: int, tower: Tower = SMALLEST) -> Pairs:
    """Image-text pairs of `length` tokens: an image, random words, ANSWER of them the answer."""
    import torch

    from efficientllava.data.proxy import IGNORED, Pairs

    ids = torch.randint(IMAGE_TOKEN + 1, vocabulary, (count, length))
    ids[:, : tower.tokens] = IMAGE_TOKEN
    labels = torch.full_like(ids, IGNORED)
    labels[:, -ANSWER:] = ids[:, -ANSWER:]
    pixels = torch.randn(count, 3, tower.side, tower.side)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    return Pairs(inputs, labels)


def save_random_inputs(arguments: argparse.Namespace) -> None:
    """Write a random bfloat16 checkpoint, made on the device, and random proxy data."""
    import torch

    from efficientllava.data.proxy import ProxyData, save_proxy

    tower = SMALLEST if arguments.small_tower else CLIP_LARGE
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(arguments.device):
        model = random_llava(size_of(arguments), max(2048, arguments.length), tower)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(arguments.folder / "model")
    segments = torch.randint(5, arguments.vocabulary, (arguments.segments, arguments.length))
    pairs = random_pairs(arguments.vocabulary, arguments.pairs, tower.tokens + 32, tower)
    save_proxy(arguments.folder / "proxy", ProxyData(segments, pairs), {})


def magnitude_database(adapter: Any, folder: Path, form: Any) -> Any:
    """A database on disk whose solutions are magnitude masks: its speed is that of a real one.

    Args:
        form: "dense" or "compact", as `obs.storage`.
    """
    from efficientllava.database import storage
    from efficientllava.database.solutions import MANIFEST, block_file, level_key, open_database
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
