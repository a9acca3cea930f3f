"""The arguments of a compiled kernel: 64-bit integers, one row for the call and one per matrix."""

from __future__ import annotations

from enum import IntEnum

from efficientllava.sparse.layout import ROWS

GROUP = ROWS
"""Rows that lie side by side in a register."""


class Call(IntEnum):
    """The first row.

    `NEXT` is the next block of rows that nobody has taken: threads count it up.
    """

    NEXT = 0
    BLOCKS = 1
    MATRICES = 2
    X = 3
    STEPS = 4
    BFLOAT_Y = 5
    SIZE = 6


class Matrix(IntEnum):
    """A row per matrix. Addresses; `BIAS_*` and `SCALES` are 0 where there is none.

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
