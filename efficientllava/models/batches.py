"""Encoded questions as one batch, so that no question's answer depends on the others."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

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
