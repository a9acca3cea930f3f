"""Attention heads of a width that DeepSparse runs: padded with zeros that change no result."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import PreTrainedModel

from efficientllava.models.families import adapter_for

MULTIPLE = 16
"""DeepSparse 1.8 crashes in the decode graph at head widths 10, 20 and 40, not at 8, 16 and 32."""


def padded_width(width: int) -> int:
    """The width a head gets: powers of two stay, others grow to the next multiple of 16."""
    return width if width & (width - 1) == 0 else -(-width // MULTIPLE) * MULTIPLE


@torch.no_grad()
def with_padded_heads(model: PreTrainedModel) -> PreTrainedModel:
    """A model that computes the same with wider heads; the model itself if its heads are fine.

    Each half of a head (rotary positions turn the first half against the second) gets its zeros
    at its end: the rows of q, k and v, the columns of o. Scores keep their scale.
    """
    blocks = adapter_for(model).blocks
    attention = blocks[0].get_submodule("self_attn")
    width = getattr(attention, "head_dim", None)
    if not isinstance(width, int) or padded_width(width) == width or width % 2:
        return model
    wider, half = padded_width(width), width // 2
    padded = copy.deepcopy(model)
    places = torch.cat([torch.arange(half), wider // 2 + torch.arange(half)])
    adapter = adapter_for(padded)
    for block in adapter.blocks:
        attention = block.get_submodule("self_attn")
        for name in ("q_proj", "k_proj", "v_proj"):
            _pad(attention.get_submodule(name), width, wider, places, columns=False)
        _pad(attention.get_submodule("o_proj"), width, wider, places, columns=True)
        setattr(attention, "head_dim", wider)  # noqa: B010  a module's attributes are untyped
    rotary = adapter.language_model.get_submodule("rotary_emb")
    frequencies = torch.zeros(wider // 2)
    frequencies[:half] = rotary.get_buffer("inv_freq")
    rotary.register_buffer("inv_freq", frequencies, persistent=False)
    padded.config.get_text_config().head_dim = wider
    return padded


def _pad(linear: nn.Module, width: int, wider: int, places: torch.Tensor, columns: bool) -> None:
    assert isinstance(linear, nn.Linear)
    weight = linear.weight.T if columns else linear.weight
    heads = weight.shape[0] // width
    rows = (torch.arange(heads)[:, None] * wider + places).flatten()
    grown = weight.new_zeros(heads * wider, weight.shape[1])
    grown[rows] = weight
    linear.weight = nn.Parameter((grown.T if columns else grown).contiguous(), requires_grad=False)
    linear.in_features, linear.out_features = linear.weight.shape[1], linear.weight.shape[0]
    if linear.bias is not None and not columns:
        bias = linear.bias.new_zeros(heads * wider)
        bias[rows] = linear.bias
        linear.bias = nn.Parameter(bias, requires_grad=False)
