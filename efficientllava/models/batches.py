"""Encoded questions as one batch, of which no answer depends on the others, nor on settings."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn
from transformers import GenerationConfig

from efficientllava.data.encoding import Encoded, join
from efficientllava.models.families import device_of


def batch_inputs(
    model: nn.Module, processor: Any, samples: Sequence[Encoded], side: Literal["left", "right"]
) -> dict[str, Tensor]:
    """The inputs of `model` for these samples together, on its device.

    Samples with and without an image may stand in one batch.

    Args:
        side: where tokens are padded: on the left before text is generated.
    """
    inputs, _ = join(samples, processor.tokenizer.pad_token_id, side)
    if not reads_token_types(model):
        inputs.pop("token_type_ids", None)
    device = device_of(model)
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def reads_token_types(model: nn.Module) -> bool:
    """Whether `token_type_ids` tell the model what it reads in both directions (PaliGemma).

    Other families' tokenizers may give them too; `generate` refuses them there.
    """
    return "token_type_ids" in inspect.signature(model.forward).parameters


def special_tokens(model: Any) -> dict[str, Any]:
    """What of a model's generation_config.json every answer needs, by its names there."""
    own = model.generation_config
    return {name: getattr(own, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


@contextmanager
def plain_generation(model: Any) -> Iterator[None]:
    """Let `generate` know of generation_config.json the special tokens alone during the block.

    Penalties, sampling and lengths there would make the answers of a checkpoint others than those
    of the graphs exported from it, and those of batches depend on their padding.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig(**special_tokens(model))
    try:
        yield
    finally:
        model.generation_config = own
