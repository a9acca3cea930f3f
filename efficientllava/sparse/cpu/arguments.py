"""A packed matrix as the kernels take it, and their arguments: rows of 64-bit integers."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import torch

from efficientllava.sparse.layout import ROWS

GROUP = ROWS
"""Rows that lie side by side in a register."""


class Packed(NamedTuple):
    """The tensors of a packed matrix on a CPU; see `efficientllava.sparse.format`."""

    masks: torch.Tensor
    values: torch.Tensor
    offsets: torch.Tensor
    scales: torch.Tensor | None
    bias: torch.Tensor | None
    rows: int


class Call(IntEnum):
    """The first row of the arguments, one for the call.

    `NEXT` is the next block of rows that nobody has taken: threads count it up.
    """

    NEXT = 0
    BLOCKS = 1
    MATRICES = 2
    X = 3
    STEPS = 4
    BFLOAT_Y = 5
    TOKENS = 6
    PANELS = 7
    SIZE = 8


class Matrix(IntEnum):
    """The rows after it, one per matrix: addresses; a bias or scales that are not there are 0.

    `WEIGHT` holds the masks of a sparse matrix, the weights of a dense one.
    """

    WEIGHT = 0
    VALUES = 1
    OFFSETS = 2
    Y = 3
    BIAS_BFLOAT = 4
    BIAS_FLOAT = 5
    SCALES = 6
    ROWS = 7
    FIRST_BLOCK = 8
    SIZE = 9
