"""Products on a CPU: which kernel computes them, and the tensors as it reads them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch.nn.functional import linear, pad

from efficientllava.sparse.cpu import dense_kernel, sparse_kernel
from efficientllava.sparse.cpu.arguments import GROUP, Packed
from efficientllava.sparse.cpu.compile import address_of
from efficientllava.sparse.cpu.dense_kernel import DenseProduct, dense_module
from efficientllava.sparse.cpu.panel_kernel import PanelProduct, panel_module, widest
from efficientllava.sparse.cpu.processor import chosen_path
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
        build, kernel: see `compile.address_of`.
        numbers: the tokens as the kernel reads them.
        rows: of a block.
    """

    build: Any
    kernel: Any
    numbers: torch.Tensor
    steps: int
    rows: int
    panels: int = 0


def sparse_products(
    x: torch.Tensor, matrices: Sequence[Packed], columns: int
) -> list[torch.Tensor]:
    """x @ matrix.T + bias of matrices that share x, their dtype and columns, in one call.

    Args:
        x: [..., columns], a floating dtype.

    Returns:
        [..., rows] each, in x's dtype. Sums are made in float32, of float64 in float64.
    """
    tokens, dtype = prod(x.shape[:-1]), matrices[0].values.dtype
    if x.dtype == torch.float64:
        return [_in_float64(x, matrix, columns) for matrix in matrices]
    if tokens > MANY_TOKENS:
        parts = x.reshape(tokens, columns).split(MANY_TOKENS)
        products = zip(*(sparse_products(part, matrices, columns) for part in parts), strict=True)
        return [torch.cat(each).view(*x.shape[:-1], each[0].shape[1]) for each in products]
    pairs = _in_pairs(x, dtype)
    numbers, name = _numbers(x, columns, LAYOUTS[dtype].columns, pairs), dtype_name(dtype)
    steps = matrices[0].masks.shape[1]
    if tokens <= FEW_TOKENS:
        kernel = SparseProduct(name, pairs, tokens)
        return _products(_Call(sparse_module, kernel, numbers, steps, SPARSE_ROWS), x, matrices)
    panels = -(-tokens // widest(chosen_path()))
    width = -(-tokens // panels)
    numbers = _in_panels(numbers, tokens, panels, width)
    wide_kernel = PanelProduct(name, pairs, width)
    return _products(_Call(panel_module, wide_kernel, numbers, steps, GROUP, panels), x, matrices)


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
    pairs = _in_pairs(x, dtype)
    numbers = _numbers(x, columns, wide, pairs)
    if not pairs and wide > 1:
        numbers = numbers.view(tokens, columns // wide, wide).transpose(1, 2).contiguous()
    kernel = DenseProduct(dtype_name(dtype), pairs, tokens)
    matrix = Packed(weight, weight, weight, None, bias, rows)
    call = _Call(dense_module, kernel, numbers, columns // wide, dense_kernel.BLOCK)
    return _products(call, x, [matrix])[0]


def _in_float64(x: torch.Tensor, matrix: Packed, columns: int) -> torch.Tensor:
    masks, values, offsets, scales, bias, rows = matrix
    dense = unpack(PackedMatrix(rows, columns, masks, values, offsets, scales))
    return linear(x, dense.double(), None if bias is None else bias.double())


def _in_pairs(x: torch.Tensor, dtype: torch.dtype) -> bool:
    return x.dtype == dtype == torch.bfloat16 and "avx512bf16" in chosen_path().has


def _numbers(x: torch.Tensor, columns: int, wide: int, pairs: bool) -> torch.Tensor:
    """x as a kernel reads it: contiguous, zeros up to a whole step, float32 unless in pairs."""
    if columns % wide:
        x = pad(x, (0, -columns % wide))
    return (x if pairs else x.to(torch.float32)).contiguous()


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


def _products(call: _Call, x: torch.Tensor, matrices: Sequence[Packed]) -> list[torch.Tensor]:
    """Run a call for its matrices; rows of each in x's dtype."""
    short, shape = x.dtype == torch.bfloat16, x.shape[:-1]
    blocks, results, kept = 0, [], []
    table: list[int] = []
    for matrix in matrices:
        y = x.new_empty((*shape, matrix.rows), dtype=torch.bfloat16 if short else torch.float32)
        bias, biases = _bias(matrix.bias)
        table += [
            *(each.data_ptr() for each in (matrix.masks, matrix.values, matrix.offsets, y)),
            *(*biases, 0 if matrix.scales is None else matrix.scales.data_ptr()),
            *(matrix.rows, blocks),
        ]
        results.append(y)
        kept.append(bias)  # its memory must outlive the call
        blocks += -(-matrix.rows // call.rows)
    tokens = prod(shape)
    if tokens and blocks:
        address = address_of(call.build, call.kernel, chosen_path())
        head = [0, blocks, len(matrices), call.numbers.data_ptr(), call.steps, int(short)]
        run_kernel(address, [*head, tokens, call.panels, *table], blocks)
    return results if short or x.dtype == torch.float32 else [y.to(x.dtype) for y in results]


def _bias(bias: torch.Tensor | None) -> tuple[torch.Tensor | None, tuple[int, int]]:
    """A bias that a kernel can read, and its addresses as bfloat16 and as float32."""
    if bias is None:
        return None, (0, 0)
    if bias.dtype == torch.bfloat16:
        bias = bias.contiguous()
        return bias, (bias.data_ptr(), 0)
    bias = bias.to(torch.float32).contiguous()
    return bias, (0, bias.data_ptr())
