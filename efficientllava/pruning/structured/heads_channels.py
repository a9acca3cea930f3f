"""Removing attention heads and MLP channels by Taylor importance (LLM-Pruner, Ma et al. 2023).

Coupled parts go together: a head's rows of q, k, v with its columns of o, a channel's rows of
gate and up with its column of down. The importance of a group is the sum over its weights of
|w * dL/dw| (LLM-Pruner's `param_first`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from efficientllava.calibration.proxy_loss import (
    Head,
    LossBatch,
    chunked_logits,
    hidden_states,
    negative_log_likelihood,
    pair_loss_batches,
    text_loss_batches,
)
from efficientllava.data.proxy import IGNORED, ProxyData
from efficientllava.errors import UserError
from efficientllava.models.families import Adapter, Matrix


@dataclass(frozen=True)
class Coupled:
    """The seven matrices of a decoder block and how its heads lie in them.

    Attributes:
        attention: the module that holds q, k, v and o.
        head_width: rows of one head.
        units: groups of heads that can go one by one: a key-value head with the query heads that
            share it, or single query heads where all share one.
    """

    q: Matrix
    k: Matrix
    v: Matrix
    o: Matrix
    gate: Matrix
    up: Matrix
    down: Matrix
    attention: nn.Module
    head_width: int
    units: int

    @property
    def query_heads(self) -> int:
        """Number of query heads."""
        return self.q.weight.shape[0] // self.head_width

    @property
    def key_heads(self) -> int:
        """Number of key-value heads."""
        return self.k.weight.shape[0] // self.head_width

    @property
    def channels(self) -> int:
        """Number of MLP channels."""
        return self.down.weight.shape[1]

    @property
    def unit_rows(self) -> tuple[int, int]:
        """Rows that one unit has in q (columns in o), and in k and v (0 where all share these)."""
        shared = self.key_heads != self.units
        return self.q.weight.shape[0] // self.units, 0 if shared else self.head_width

    @property
    def unit_size(self) -> int:
        """Weights of one unit."""
        in_q, in_k = self.unit_rows
        width = self.q.weight.shape[1]
        return in_q * (width + self.o.weight.shape[0]) + 2 * in_k * width

    @property
    def channel_size(self) -> int:
        """Weights of one channel."""
        return 2 * self.gate.weight.shape[1] + self.down.weight.shape[0]


def coupled(adapter: Adapter, block: int) -> Coupled:
    """The coupled matrices of a block.

    Raises:
        UserError: the block has other matrices than q, k, v / o / gate, up / down.
    """
    groups = adapter.of_block(block)
    if [len(group) for group in groups] != [3, 1, 2, 1]:
        raise UserError(
            "its blocks are not made of q, k, v, o, gate, up and down matrices",
            where="llm_pruner",
            remedy="leave llm_pruner out of methods for this model",
        )
    (q, k, v), (o,), (gate, up), (down,) = groups
    attention = adapter.blocks[block].get_submodule("self_attn")
    head_width = int(getattr(attention, "head_dim"))  # noqa: B009  modules are untyped
    keys = k.weight.shape[0] // head_width
    units = keys if keys > 1 else q.weight.shape[0] // head_width
    return Coupled(q, k, v, o, gate, up, down, attention, head_width, units)


def taylor_salience(adapter: Adapter, proxy: ProxyData, calibration: str) -> list[torch.Tensor]:
    """|w * dL/dw| of every weight of every prunable matrix, [out, in] each, in order.

    L is the negative log-likelihood of the proxy loss: text, or the mean of text and answers.
    """
    batches = [text_loss_batches(adapter, proxy.segments)]
    if calibration == "text_and_pairs" and proxy.pairs is not None:
        batches.append(pair_loss_batches(adapter, proxy))
    head = adapter.head
    parameters = list(adapter.model.parameters())
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(False)
    weights = [matrix.module.weight for matrix in adapter.matrices]
    try:
        for weight in weights:
            weight.requires_grad_(True)
            weight.grad = None
        for part in batches:
            _accumulate_gradients(adapter, head, part, 1.0 / len(batches))
        return [(weight.grad * weight).detach().abs() for weight in weights]  # type: ignore[operator]
    finally:
        for weight in weights:
            weight.grad = None
        for parameter, required in zip(parameters, before, strict=True):
            parameter.requires_grad_(required)


def _accumulate_gradients(
    adapter: Adapter, head: Head, batches: Sequence[LossBatch], share: float
) -> None:
    count = sum(int((batch.targets != IGNORED).sum()) for batch in batches)
    for batch in batches:
        with torch.enable_grad():
            hidden = hidden_states(adapter.language_model, batch.inputs)[batch.positions]
            losses = [
                negative_log_likelihood(logits.log_softmax(dim=-1), batch.targets[rows]).sum()
                for rows, logits in chunked_logits(head, hidden)
            ]
            (torch.stack(losses).sum() * (share / max(count, 1))).backward()


def group_importance(
    parts: Coupled, salience: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of salience over coupled weights: per unit of heads, per channel.

    Args:
        salience: per weight, by the matrix's name.

    Returns:
        [units] and [channels], float64.
    """
    in_q, in_k = parts.unit_rows
    queries = salience[parts.q.name].double().sum(1) + salience[parts.o.name].double().sum(0)
    units = queries.view(parts.units, in_q).sum(1)
    if in_k:
        keys = salience[parts.k.name].double().sum(1) + salience[parts.v.name].double().sum(1)
        units = units + keys.view(parts.units, in_k).sum(1)
    channels = (
        salience[parts.gate.name].double().sum(1)
        + salience[parts.up.name].double().sum(1)
        + salience[parts.down.name].double().sum(0)
    )
    return units, channels


def most_important(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` places of the largest scores, ascending; of equal ones the earlier."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def rows_of(units: torch.Tensor, width: int) -> torch.Tensor:
    """The rows of units of `width` rows each, in order."""
    return (units[:, None] * width + torch.arange(width, device=units.device)).flatten()


@torch.no_grad()
def cut_out(parts: Coupled, units: torch.Tensor, channels: torch.Tensor) -> None:
    """Keep these units and channels of a block, in place: its matrices become smaller.

    Args:
        units, channels: kept places, ascending.
    """
    in_q, in_k = parts.unit_rows
    queries = rows_of(units, in_q)
    _take(parts.q.module, queries, 0)
    _take(parts.o.module, queries, 1)
    if in_k:
        for matrix in (parts.k, parts.v):
            _take(matrix.module, rows_of(units, in_k), 0)
    for matrix in (parts.gate, parts.up):
        _take(matrix.module, channels, 0)
    _take(parts.down.module, channels, 1)
    # attention knows its counts from the configuration it was built with
    attention: Any = parts.attention
    if hasattr(attention, "num_key_value_groups"):
        attention.num_key_value_groups = parts.query_heads // parts.key_heads
    for name, value in (("num_heads", parts.query_heads), ("num_key_value_heads", parts.key_heads)):
        if hasattr(attention, name):
            setattr(attention, name, value)


def _take(linear: nn.Module, indices: torch.Tensor, dimension: int) -> None:
    assert isinstance(linear, nn.Linear)
    kept = linear.weight.data.index_select(dimension, indices).contiguous()
    linear.weight = nn.Parameter(kept, requires_grad=linear.weight.requires_grad)
    if linear.bias is not None and dimension == 0:
        linear.bias = nn.Parameter(linear.bias.data[indices].contiguous())
    linear.out_features, linear.in_features = kept.shape


@torch.no_grad()
def blank_out(parts: Coupled, units: torch.Tensor, channels: torch.Tensor) -> dict[str, int]:
    """Keep these units and channels and set all others to zero, in place; shapes stay.

    Returns:
        by matrix name, the number of weights that were set to zero.
    """
    in_q, in_k = parts.unit_rows
    queries = rows_of(units, in_q)
    zeroed = {matrix.name: 0 for matrix in (parts.k, parts.v)}
    jobs = [(parts.q, queries, 0), (parts.o, queries, 1)]
    if in_k:
        jobs += [(matrix, rows_of(units, in_k), 0) for matrix in (parts.k, parts.v)]
    jobs += [(parts.gate, channels, 0), (parts.up, channels, 0), (parts.down, channels, 1)]
    for matrix, kept, dimension in jobs:
        gone = torch.ones(matrix.weight.shape[dimension], dtype=torch.bool)
        gone[kept.cpu()] = False
        gone = gone.to(matrix.weight.device)
        matrix.weight.masked_fill_(gone[:, None] if dimension == 0 else gone, 0.0)
        if dimension == 0 and matrix.module.bias is not None:
            matrix.module.get_parameter("bias").data.masked_fill_(gone, 0.0)
        zeroed[matrix.name] = int(gone.sum()) * matrix.weight.shape[1 - dimension]
    return zeroed
