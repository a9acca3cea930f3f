"""Products on a CPU: a few tokens by kernels that expand in registers, more by torch on tiles."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad

from efficientllava.sparse.cpu import dense_kernel, expand_kernel, sparse_kernel
from efficientllava.sparse.cpu.arguments import GROUP, Call, Matrix
from efficientllava.sparse.cpu.compile import address_of
from efficientllava.sparse.cpu.dense_kernel import DenseProduct, dense_module
from efficientllava.sparse.cpu.expand_kernel import Expansion, expand_module
from efficientllava.sparse.cpu.processor import Path, chosen_path
from efficientllava.sparse.cpu.products import WIDTH
from efficientllava.sparse.cpu.sparse_kernel import SparseProduct, sparse_module
from efficientllava.sparse.cpu.threads import run_kernel

NAMES = {
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float32: "float32",
    torch.int8: "int8",
}
MOST_TOKENS = 8
"""Tokens of one call of a kernel."""
TILE_BYTES = 8 << 20
"""Of a tile of rows that is expanded and multiplied before the next one: it stays in a cache."""


class Packed(NamedTuple):
    """The tensors of a packed matrix on a CPU; see `efficientllava.sparse.format`."""

    masks: torch.Tensor
    values: torch.Tensor
    offsets: torch.Tensor
    scales: torch.Tensor | None
    bias: torch.Tensor | None
    rows: int


def sparse_linear(x: torch.Tensor, matrices: Sequence[Packed], columns: int) -> list[torch.Tensor]:
    """x @ matrix.T + bias of matrices that share x, dtype and columns.

    Args:
        x: [..., columns], bfloat16, float16, float32 or float64.

    Returns:
        [..., rows] each, in x's dtype. Sums are made in float32; float64 in float64.
    """
    tokens = prod(x.shape[:-1])
    if tokens > MOST_TOKENS or x.dtype == torch.float64:
        return [_by_tiles(x, matrix, columns) for matrix in matrices]
    path, dtype = chosen_path(), matrices[0].values.dtype
    pairs = path.has >= {"avx512bf16"} and x.dtype == dtype == torch.bfloat16
    width = WIDTH[NAMES[dtype]]
    numbers = _numbers(x, columns, width, pairs)
    kernel = SparseProduct(NAMES[dtype], pairs, tokens)
    address = address_of(sparse_module, kernel, path) if tokens else 0
    rows = [
        _matrix_row(each, each.masks.data_ptr(), -(-each.rows // (GROUP * sparse_kernel.BLOCK)))
        for each in matrices
    ]
    return _run(address, x, numbers, matrices[0].masks.shape[1], rows)
