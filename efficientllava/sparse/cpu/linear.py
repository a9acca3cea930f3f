"""Products on a CPU: a few tokens by kernels that expand in registers, more by torch on tiles."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch.nn.functional import linear, pad

from efficientllava.sparse.cpu import dense_kernel, sparse_kernel
from efficientllava.sparse.cpu.arguments import GROUP
from efficientllava.sparse.cpu.compile import address_of
from efficientllava.sparse.cpu.dense_kernel import DenseProduct, dense_module
from efficientllava.sparse.cpu.expand_kernel import Expansion, expand_module
from efficientllava.sparse.cpu.processor import chosen_path
from efficientllava.sparse.cpu.sparse_kernel import SparseProduct, sparse_module
from efficientllava.sparse.cpu.threads import run_kernel
from efficientllava.sparse.layout import LAYOUTS, dtype_name

MOST_TOKENS = 8
"""Tokens of one call of a kernel."""
TILE_BYTES = 8 << 20
"""Of a tile of rows that is expanded and multiplied before the next one: it stays in a cache."""
SPARSE_ROWS = GROUP * sparse_kernel.BLOCK


class Packed(NamedTuple):
    """The tensors of a packed matrix on a CPU; see `efficientllava.sparse.format`."""

    masks: torch.Tensor
    values: torch.Tensor
    offsets: torch.Tensor
    scales: torch.Tensor | None
    bias: torch.Tensor | None
    rows: int


def sparse_products(
    x: torch.Tensor, matrices: Sequence[Packed], columns: int
) -> list[torch.Tensor]:
    """x @ matrix.T + bias of matrices that share x, their dtype and columns, in one call.

    Args:
        x: [..., columns], a floating dtype.

    Returns:
        [..., rows] each, in x's dtype. Sums are made in float32, of float64 in float64.
    """
    tokens = prod(x.shape[:-1])
    if tokens > MOST_TOKENS or x.dtype == torch.float64:
        return [_by_tiles(x, matrix, columns) for matrix in matrices]
    dtype = matrices[0].values.dtype
    pairs = _in_pairs(x, dtype)
    numbers = _numbers(x, columns, LAYOUTS[dtype].columns, pairs)
    kernel = SparseProduct(dtype_name(dtype), pairs, tokens)
    steps = matrices[0].masks.shape[1]
    return _products(sparse_module, kernel, numbers, steps, x, matrices, SPARSE_ROWS)


def dense_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x @ weight.T + bias for a few tokens; as torch does it for many, or for odd columns.

    Args:
        x: [..., columns], a floating dtype.
        weight: [rows, columns] of bfloat16, float16 or float32.
    """
    rows, columns = weight.shape
    tokens, dtype = prod(x.shape[:-1]), weight.dtype
    wide = LAYOUTS[dtype].columns if dtype in LAYOUTS else 0
    fits = wide and x.dtype == dtype and weight.is_contiguous() and rows and columns
    if not fits or not 0 < tokens <= MOST_TOKENS or columns % (GROUP * wide):
        return linear(x, weight, bias)
    pairs = _in_pairs(x, dtype)
    numbers = _numbers(x, columns, wide, pairs)
    if not pairs and wide > 1:
        numbers = numbers.view(tokens, columns // wide, wide).transpose(1, 2).contiguous()
    kernel = DenseProduct(dtype_name(dtype), pairs, tokens)
    matrix = Packed(weight, weight, weight, None, bias, rows)
    steps = columns // wide
    return _products(dense_module, kernel, numbers, steps, x, [matrix], dense_kernel.BLOCK)[0]


def expand_rows(matrix: Packed, columns: int, first: int, last: int) -> torch.Tensor:
    """Rows of the groups `first` to `last`, dense: [16 * groups, columns] in the matrix's dtype."""
    dtype, steps = matrix.values.dtype, matrix.masks.shape[1]
    groups, wide = last - first, LAYOUTS[dtype].columns
    dense = torch.empty((GROUP * groups, steps * wide), dtype=dtype)
    if dense.numel():
        masks, offsets = matrix.masks, matrix.offsets
        row = [
            *(masks.data_ptr() + first * steps * masks.itemsize, matrix.values.data_ptr()),
            *(offsets.data_ptr() + first * offsets.itemsize, dense.data_ptr()),
            *(0, 0, 0, GROUP * groups, 0),
        ]
        address = address_of(expand_module, Expansion(dtype_name(dtype)), chosen_path())
        _run(address, [0, groups, 1, 0, steps, 0, *row], groups)
    return dense


def _by_tiles(x: torch.Tensor, matrix: Packed, columns: int) -> torch.Tensor:
    """Expand a tile of rows, let torch multiply it, and so on."""
    wide = LAYOUTS[matrix.values.dtype].columns
    flat = x.reshape(prod(x.shape[:-1]), columns)
    if columns % wide:
        flat = pad(flat, (0, -columns % wide))
    result = x.new_empty((len(flat), matrix.rows))
    groups = -(-matrix.rows // GROUP)
    step = max(1, TILE_BYTES // max(1, GROUP * columns * matrix.values.itemsize))
    for first in range(0, groups, step):
        last = min(groups, first + step)
        rows = slice(GROUP * first, min(GROUP * last, matrix.rows))
        tile = expand_rows(matrix, columns, first, last)[: rows.stop - rows.start].to(x.dtype)
        scales, bias = matrix.scales, matrix.bias
        added = None if bias is None else bias[rows].to(x.dtype)
        if scales is None:
            result[:, rows] = linear(flat, tile, added)
        else:
            product = (
                linear(flat, tile) * scales[rows]
            )  # float32: bfloat16 scales would cost digits
            result[:, rows] = product if added is None else product + added
    return result.reshape(*x.shape[:-1], matrix.rows)


def _in_pairs(x: torch.Tensor, dtype: torch.dtype) -> bool:
    return x.dtype == dtype == torch.bfloat16 and "avx512bf16" in chosen_path().has


def _numbers(x: torch.Tensor, columns: int, wide: int, pairs: bool) -> torch.Tensor:
    """x as a kernel reads it: contiguous, zeros up to a whole step, float32 unless in pairs."""
    if columns % wide:
        x = pad(x, (0, -columns % wide))
    return (x if pairs else x.to(torch.float32)).contiguous()


def _products(  # noqa: PLR0913 the operands of one call of a kernel
    build: Any,
    kernel: Any,
    numbers: torch.Tensor,
    steps: int,
    x: torch.Tensor,
    matrices: Sequence[Packed],
    block_rows: int,
) -> list[torch.Tensor]:
    short = x.dtype == torch.bfloat16
    shape = x.shape[:-1]
    results, table, blocks, kept = [], [], 0, []
    for matrix in matrices:
        masks, values, offsets, scales, bias, rows = matrix
        y = x.new_empty((*shape, rows), dtype=torch.bfloat16 if short else torch.float32)
        results.append(y)
        bias_short = bias_long = 0
        if bias is not None:
            if bias.dtype not in (torch.bfloat16, torch.float32):
                bias = bias.to(torch.float32)
            bias = bias.contiguous()
            kept.append(bias)
            if bias.dtype == torch.bfloat16:
                bias_short = bias.data_ptr()
            else:
                bias_long = bias.data_ptr()
        table += [
            *(masks.data_ptr(), values.data_ptr(), offsets.data_ptr(), y.data_ptr()),
            *(bias_short, bias_long, 0 if scales is None else scales.data_ptr()),
            *(rows, blocks),
        ]
        blocks += -(-rows // block_rows)
    if kernel.tokens and blocks:
        address = address_of(build, kernel, chosen_path())
        head = [0, blocks, len(matrices), numbers.data_ptr(), steps, int(short)]
        _run(address, head + table, blocks)
    return results if short or x.dtype == torch.float32 else [y.to(x.dtype) for y in results]


def _run(address: int, arguments: list[int], blocks: int) -> None:
    run_kernel(address, (ctypes.c_int64 * len(arguments))(*arguments), blocks)
