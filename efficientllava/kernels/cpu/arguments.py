"""Arguments that the compiled loops take together, as named tuples, which numba passes by value."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class TileRows(NamedTuple):
    """The rows of every tile; see `sections.Tiles`."""

    bounds: np.ndarray
    section: np.ndarray
    members: np.ndarray
    gaps: np.ndarray


class Block(NamedTuple):
    """A block of columns, and the parts of U that spread its errors.

    Attributes:
        start: its first column.
        inner: U of the block, columns as rows; `diagonal` is its diagonal.
        no_input: [columns], whether a column's input is always zero.
        right: U of the next columns, [panels, columns, 64], from the stack's `first_panel` on.
    """

    start: int
    inner: np.ndarray
    diagonal: np.ndarray
    no_input: np.ndarray
    right: np.ndarray
    first_panel: int


class Choice(NamedTuple):
    """The choice of the weights of a block to prune.

    Attributes:
        keys: [rows, columns], unused in groups.
        limits, counts: [sections], the key from which on weights stay; zeros in a group.
        group: columns of a group, or 0.
    """

    keys: np.ndarray
    limits: np.ndarray
    counts: np.ndarray
    group: int


class Lists(NamedTuple):
    """Errors that are not zero, as lists; for one tile, or with leading dimensions for many.

    Attributes:
        columns, errors: [entries] and [members, entries].
        begins: [rows + 1], where each row's list begins.
    """

    columns: np.ndarray
    errors: np.ndarray
    begins: np.ndarray


class Strip(NamedTuple):
    """A strip of rows, side by side: [columns, rows] each."""

    weights: np.ndarray
    errors: np.ndarray
    ranks: np.ndarray


class Scored(NamedTuple):
    """The columns whose weights are scored.

    Attributes:
        start: the first of them.
        live: [columns] uint32, all bits of a key for an input that is used, else 0.
    """

    start: int
    diagonal: np.ndarray
    live: np.ndarray


class Digit(NamedTuple):
    """A digit of the keys: bits `shift` to `above`, of keys with a section's prefix above it."""

    prefix: np.ndarray
    shift: int
    above: int
