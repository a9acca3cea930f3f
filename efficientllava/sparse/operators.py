"""Products with packed and dense matrices as torch's custom operators, by device.

`torch.ops.efficientllava.sparse_linear` is x @ matrix.T + bias of a packed matrix, `dense_linear`
of a dense one. Neither has a gradient.
"""

from __future__ import annotations

import importlib.util

import torch

from efficientllava.errors import UserError
from efficientllava.sparse.cpu.linear import Packed, dense_product, sparse_products
from efficientllava.sparse.layout import LAYOUTS, PADDING, ROWS, dtype_name

LIBRARY = torch.library.Library("efficientllava", "DEF")
LIBRARY.define(
    "sparse_linear(Tensor x, Tensor masks, Tensor values, Tensor offsets, Tensor? scales, "
    "Tensor? bias, int rows, int columns) -> Tensor"
)
LIBRARY.define("dense_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")


def _sparse_linear(
    x: torch.Tensor,
    masks: torch.Tensor,
    values: torch.Tensor,
    offsets: torch.Tensor,
    scales: torch.Tensor | None,
    bias: torch.Tensor | None,
    rows: int,
    columns: int,
) -> torch.Tensor:
    matrix = Packed(masks, values, offsets, scales, bias, rows)
    require_fit(x, matrix, columns)
    return sparse_products(x, [matrix], columns)[0]


def _cuda_linear(
    x: torch.Tensor,
    masks: torch.Tensor,
    values: torch.Tensor,
    offsets: torch.Tensor,
    scales: torch.Tensor | None,
    bias: torch.Tensor | None,
    rows: int,
    columns: int,
) -> torch.Tensor:
    require_fit(x, Packed(masks, values, offsets, scales, bias, rows), columns)
    if importlib.util.find_spec("triton") is None:
        raise UserError(
            "packed matrices on CUDA need the package triton",
            where="sparse_linear",
            remedy="pip install 'efficientllava[gpu]'",
        )
    # needs triton
    from efficientllava.sparse.triton.product import sparse_linear

    return sparse_linear(x, masks, values, offsets, scales, bias, rows, columns)


def require_fit(x: torch.Tensor, matrix: Packed, columns: int) -> None:
    """Check the sizes that a kernel relies on; `format.check` looks into the tensors.

    Raises:
        UserError: they do not fit each other, or x.
    """
    require_input(x, columns)
    require_matrix(matrix, columns)


def require_input(x: torch.Tensor, columns: int) -> None:
    """Check that a matrix of so many columns can be multiplied with x.

    Raises:
        UserError: x has another size, or no floating dtype.
    """
    if x.shape[-1:] != (columns,) or not x.is_floating_point():
        raise UserError(
            f"the input is {dtype_name(x.dtype)} {list(x.shape)}, "
            f"the matrix wants floating numbers [..., {columns}]",
            where="sparse_linear",
        )


def require_matrix(matrix: Packed, columns: int) -> None:
    """Check the sizes of a packed matrix, as far as a kernel relies on them.

    Raises:
        UserError: they do not fit each other.
    """
    masks, values, offsets, scales, bias, rows = matrix
    layout = LAYOUTS.get(values.dtype)
    groups = -(-rows // ROWS)
    fits = (
        layout is not None
        and masks.dtype == layout.mask
        and masks.shape == (groups, -(-columns // layout.columns))
        and offsets.dtype == torch.int64
        and offsets.shape == (groups + 1,)
        and values.dim() == 1
        and len(values) * values.itemsize >= PADDING
        and (bias is None or bias.shape == (rows,))
        and (scales is None or (scales.shape == (rows,) and scales.dtype == torch.float32))
    )
    if not fits or not (masks.is_contiguous() and values.is_contiguous()):
        raise UserError(
            f"masks {list(masks.shape)}, values {list(values.shape)} and offsets "
            f"{list(offsets.shape)} are not those of a packed matrix [{rows}, {columns}]",
            where="sparse_linear",
        )


@torch.library.register_fake("efficientllava::sparse_linear")
def _fake_linear(x, masks, values, offsets, scales, bias, rows, columns):  # type: ignore[no-untyped-def]
    return x.new_empty((*x.shape[:-1], rows))


@torch.library.register_fake("efficientllava::dense_linear")
def _fake_dense(x, weight, bias):  # type: ignore[no-untyped-def]
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


LIBRARY.impl("sparse_linear", _sparse_linear, "CPU")
LIBRARY.impl("dense_linear", dense_product, "CPU")
LIBRARY.impl("sparse_linear", _cuda_linear, "CUDA")
LIBRARY.impl("dense_linear", torch.nn.functional.linear, "CUDA")
