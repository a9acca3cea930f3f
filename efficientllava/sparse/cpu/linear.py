"""Products on a CPU: which kernel computes them, and the tensors as it reads them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import NamedTuple

import torch
from torch.nn.functional import linear, pad

from efficientllava.sparse.cpu import dense_kernel, sparse_kernel
from efficientllava.sparse.cpu.arguments import GROUP, Packed
from efficientllava.sparse.cpu.compile import address_of
from efficientllava.sparse.cpu.dense_kernel import DenseProduct, dense_module
from efficientllava.sparse.cpu.panel_kernel import PanelProduct, panel_module, widest
from efficientllava.sparse.cpu.processor import Path, chosen_path
from efficientllava.sparse.cpu.sparse_kernel import SparseProduct, sparse_module
from efficientllava.sparse.cpu.threads import run_kernel
from efficientllava.sparse.format import PackedMatrix, unpack
from efficientllava.sparse.layout import LAYOUTS, dtype_name

FEW_TOKENS = 8
"""Tokens for which weights are expanded in registers; more of them go in panels."""
MANY_TOKENS = 1024
"""Tokens of one call: their sums lie on a thread's stack, 64 bytes each."""
SPARSE_ROWS = GROUP * sparse_kernel.BLOCK


class _Call(NamedTuple):
    """What one call of a kernel has for all its matrices.

    Attributes:
        address: of the kernel.
        numbers: the tokens as the kernel reads them.
        rows: of a block.
    """

    address: int
    numbers: torch.Tensor
    steps: int
    rows: int
    panels: int = 0


@cache
def _sparse_kernel(dtype: torch.dtype, pairs: bool, tokens: int, path: Path) -> int:
    return address_of(sparse_module, SparseProduct(dtype_name(dtype), pairs, tokens), path)


@cache
def _panel_kernel(dtype: torch.dtype, pairs: bool, width: int, path: Path) -> int:
    return address_of(panel_module, PanelProduct(dtype_name(dtype), pairs, width), path)


@cache
def _dense_kernel(dtype: torch.dtype, pairs: bool, tokens: int, path: Path) -> int:
    return address_of(dense_module, DenseProduct(dtype_name(dtype), pairs, tokens), path)


def sparse_products(
    x: torch.Tensor, matrices: Sequence[Packed], columns: int
) -> list[torch.Tensor]:
    """x @ matrix.T + bias of matrices that share x, their dtype and columns, in one call.

    Args:
        x: [..., columns], a floating dtype; checked by `operators.require_fit`.

    Returns:
        [..., rows] each, in x's dtype. Sums are made in float32, of float64 in float64.
    """
    tokens, dtype = prod(x.shape[:-1]), matrices[0].values.dtype
    if x.dtype == torch.float64:
        return [_in_float64(x, matrix, columns) for matrix in matrices]
    if not tokens:
        return [x.new_empty((*x.shape[:-1], matrix.rows)) for matrix in matrices]
    if tokens > MANY_TOKENS:
        parts = x.reshape(tokens, columns).split(MANY_TOKENS)
        products = zip(*(sparse_products(part, matrices, columns) for part in parts), strict=True)
        return [torch.cat(each).view(*x.shape[:-1], each[0].shape[1]) for each in products]
    path = chosen_path()
    pairs = x.dtype == dtype == torch.bfloat16 and path.has_pairs
    numbers = _numbers(x, columns, LAYOUTS[dtype].columns, pairs)
    steps = matrices[0].masks.shape[1]
    if tokens <= FEW_TOKENS:
        kernel = _sparse_kernel(dtype, pairs, tokens, path)
        return _products(_Call(kernel, numbers, steps, SPARSE_ROWS), x, tokens, matrices)
    panels = -(-tokens // widest(path))
    width = -(-tokens // panels)
    numbers = _in_panels(numbers, tokens, panels, width)
    kernel = _panel_kernel(dtype, pairs, width, path)
    return _products(_Call(kernel, numbers, steps, GROUP, panels), x, tokens, matrices)


def dense_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x @ weight.T + bias: for a few tokens by a kernel of ours, else as torch does it.

    Torch multiplies more than 8 tokens, and columns that are no multiple of a vector.

    Args:
        x: [..., columns], a floating dtype.
        weight: [rows, columns].
    """
    rows, columns = weight.shape
    tokens, dtype = prod(x.shape[:-1]), weight.dtype
    wide = LAYOUTS[dtype].columns if dtype.is_floating_point and dtype in LAYOUTS else 0
    fits = wide and x.dtype == dtype and weight.is_contiguous() and rows and columns
    if not fits or not 0 < tokens <= FEW_TOKENS or columns % (GROUP * wide):
        return linear(x, weight, bias)
    path = chosen_path()
    pairs = dtype == torch.bfloat16 and path.has_pairs
    numbers = _numbers(x, columns, wide, pairs)
    if not pairs and wide > 1:
        numbers = numbers.view(tokens, columns // wide, wide).transpose(1, 2).contiguous()
    matrix = Packed(weight, weight, weight, None, bias, rows)
    kernel = _dense_kernel(dtype, pairs, tokens, path)
    call = _Call(kernel, numbers, columns // wide, dense_kernel.BLOCK)
    return _products(call, x, tokens, [matrix])[0]


def _in_float64(x: torch.Tensor, matrix: Packed, columns: int) -> torch.Tensor:
    masks, values, offsets, scales, bias, rows = matrix
    dense = unpack(PackedMatrix(rows, columns, masks, values, offsets, scales))
    return linear(x, dense.double(), None if bias is None else bias.double())


def _numbers(x: torch.Tensor, columns: int, wide: int, pairs: bool) -> torch.Tensor:
    """x as a kernel reads it: contiguous, zeros up to a whole step, float32 unless in pairs."""
    if columns % wide:
        x = pad(x, (0, -columns % wide))
    return (x if pairs else x.float()).contiguous()


def _in_panels(numbers: torch.Tensor, tokens: int, panels: int, width: int) -> torch.Tensor:
    """Tokens in panels [panels, numbers of 4 bytes, width]; the last ones lack a token."""
    if numbers.storage_offset() % 2:
        numbers = numbers.clone()  # pairs begin at 4 bytes
    units = numbers.view(-1).view(torch.int32)
    units = units.view(tokens, len(units) // tokens)
    longer = tokens - panels * (width - 1)
    packed = units.new_empty((panels, units.shape[1], width))
    first, rest = units[: longer * width], units[longer * width :]
    packed[:longer] = first.unflatten(0, (longer, width)).transpose(1, 2)
    if longer < panels:
        short = rest.unflatten(0, (panels - longer, width - 1))
        packed[longer:, :, : width - 1] = short.transpose(1, 2)
    return packed


def _products(
    call: _Call, x: torch.Tensor, tokens: int, matrices: Sequence[Packed]
) -> list[torch.Tensor]:
    """Run a call for its matrices: rows of each in x's dtype. Written for speed."""
    short, shape = x.dtype == torch.bfloat16, x.shape[:-1]
    made = torch.bfloat16 if short else torch.float32
    blocks, results, table, kept = 0, [], [], []
    for masks, values, offsets, scales, bias, rows in matrices:
        y = torch.empty((*shape, rows), dtype=made)
        short_bias = long_bias = 0
        if bias is not None:
            bias, short_bias, long_bias = _bias(bias)
            kept.append(bias)  # its memory must outlive the call
        table += (
            masks.data_ptr(),
            values.data_ptr(),
            offsets.data_ptr(),
            y.data_ptr(),
            short_bias,
            long_bias,
            0 if scales is None else scales.data_ptr(),
            rows,
            blocks,
        )
        results.append(y)
        blocks += -(-rows // call.rows)
    if blocks:
        head = (0, blocks, len(results), call.numbers.data_ptr(), call.steps, short, tokens)
        run_kernel(call.address, (*head, call.panels, *table), blocks)
    return results if made == x.dtype else [y.to(x.dtype) for y in results]


def _bias(bias: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """A bias that a kernel can read, and its address as bfloat16 or as float32."""
    if bias.dtype == torch.bfloat16:
        bias = bias.contiguous()
        return bias, bias.data_ptr(), 0
    bias = bias.to(torch.float32).contiguous()
    return bias, 0, bias.data_ptr()
