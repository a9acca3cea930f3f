"""Configurations for fewer heads and channels, such that plain transformers builds them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import MistralConfig
from transformers.models.mistral.modeling_mistral import MistralAttention

from efficientllava.errors import UserError

SAME_AS_LLAMA = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads head_dim hidden_act max_position_embeddings initializer_range "
    "rms_norm_eps use_cache pad_token_id bos_token_id eos_token_id tie_word_embeddings "
    "rope_parameters attention_dropout dtype"
).split()


@dataclass(frozen=True)
class Shape:
    """The counts that every block keeps: equal in all, as configurations demand."""

    units: int
    channels: int


def configured(
    attention: nn.Module, config: Any, query_heads: int, key_heads: int, head_width: int
) -> Any | None:
    """A copy of a text configuration with other head counts that transformers builds as asked.

    LLaMA's configuration refuses head counts that do not divide the model's width. Mistral's
    takes any, and without its sliding window it computes the same from the same weights: such a
    model is saved as `mistral`.

    Returns:
        the configuration, or None when no class takes these counts (Qwen2.5-VL derives the width
        of a head from their number).
    """
    changed = copy.deepcopy(config)
    changed.num_attention_heads, changed.num_key_value_heads = query_heads, key_heads
    changed.head_dim = head_width
    rows = (query_heads * head_width, key_heads * head_width)
    if _builds(type(attention), changed, rows):
        return changed
    if config.model_type == "llama" and not (config.attention_bias or config.mlp_bias):
        values = {name: getattr(changed, name) for name in SAME_AS_LLAMA if hasattr(changed, name)}
        renamed = MistralConfig(**values, sliding_window=None)
        if _builds(MistralAttention, renamed, rows):
            return renamed
    return None


def _builds(attention: type[nn.Module], config: Any, rows: tuple[int, int]) -> bool:
    try:
        config.validate()
        with torch.device("meta"):
            built: Any = attention(config, layer_idx=0)
    except (StrictDataclassError, ValueError, TypeError, RuntimeError):
        return False
    return (built.q_proj.out_features, built.k_proj.out_features) == rows


def shape_for(
    target: float, units: int, unit_size: int, channels: int, channel_size: int, usable: list[int]
) -> Shape:
    """The counts that remove `target` weights of a block, heads and channels in proportion.

    Heads are rounded to the nearest count that can be built; channels, which are small, make up
    the difference, so that the total is met to half a channel.

    Args:
        target: weights to remove.
        units, channels: that there are, of `unit_size` and `channel_size` weights.
        usable: numbers of units that may be kept.

    Raises:
        UserError: at least one unit and one channel must stay, and the target asks for more.
    """
    total = units * unit_size + channels * channel_size
    share = target / total
    for kept in sorted(usable, key=lambda count: (abs(count - units * (1 - share)), -count)):
        rest = target - (units - kept) * unit_size
        gone = round(rest / channel_size)
        if 0 <= gone < channels:
            return Shape(kept, channels - gone)
    raise UserError(
        f"{share:.1%} of the weights of a block are to go; at least one head and one MLP channel "
        "must stay in each block, and heads only come in whole numbers",
        where="llm_pruner",
        remedy="lower the ratio, or finalize.protect_first and finalize.protect_last",
    )
