"""The product with a packed matrix as an operator of torch, which torch.compile can see through."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from efficientllava.sparse.format import PackedMatrix, unpack


@torch.library.custom_op("efficientllava::sparse_linear", mutates_args=())
def sparse_linear(
    x: torch.Tensor,
    masks: torch.Tensor,
    values: torch.Tensor,
    offsets: torch.Tensor,
    scales: torch.Tensor | None,
    bias: torch.Tensor | None,
    rows: int,
    columns: int,
) -> torch.Tensor:
    """x [..., columns] times a packed matrix [rows, columns], plus bias [rows], in x's dtype."""
    weight = unpack(PackedMatrix(rows, columns, masks, values, offsets, scales))
    return functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


@sparse_linear.register_fake
def _(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
    rows: int = arguments[-2]
    return x.new_empty((*x.shape[:-1], rows))
