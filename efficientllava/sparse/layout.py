"""How weights of each dtype are laid out in groups and steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from efficientllava.errors import UserError

ROWS = 16
"""Rows of a group, which share their masks."""
PADDING = 64
"""Bytes of zeros behind the values: a kernel may load a whole vector at the last of them."""


@dataclass(frozen=True)
class Layout:
    """How weights of one dtype are laid out.

    Attributes:
        columns: of a step; a mask has 16 * columns bits.
        mask: dtype of a mask.
        bits: dtype that holds a weight's bits.
    """

    columns: int
    mask: torch.dtype
    bits: torch.dtype


LAYOUTS = {
    torch.bfloat16: Layout(2, torch.int32, torch.int16),
    torch.float16: Layout(2, torch.int32, torch.int16),
    torch.float32: Layout(1, torch.int16, torch.int32),
    torch.int8: Layout(4, torch.int64, torch.int8),
}


def layout_of(dtype: torch.dtype) -> Layout:
    """The layout of weights of a dtype.

    Raises:
        UserError: there is none.
    """
    if dtype not in LAYOUTS:
        known = ", ".join(dtype_name(known) for known in LAYOUTS)
        raise UserError(
            f"weights of {dtype_name(dtype)} cannot be packed",
            where="sparse format",
            remedy=f"convert them to one of {known}",
        )
    return LAYOUTS[dtype]


def padding_of(dtype: torch.dtype) -> int:
    """Zeros behind the values of a dtype, in elements."""
    return PADDING // dtype.itemsize


def dtype_name(dtype: torch.dtype) -> str:
    """As torch prints it, without `torch.`."""
    return str(dtype).removeprefix("torch.")
