"""Loops over the groups of a matrix: count, pack, unpack, compare. Compiled when first imported.

All arrays are unsigned integers of the weights' size: bits, not numbers. `wide` is the number of
columns of a step; groups `first` to `last` are worked on, so that threads share a matrix.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from efficientllava.kernels.cpu.vector_kernel import compiled
from efficientllava.sparse.layout import ROWS


@intrinsic
def ones(typing_context, word):  # type: ignore[no-untyped-def]
    """The number of set bits of a 64-bit word."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        long = ir.IntType(64)
        counter = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(long, [long]), "llvm.ctpop.i64"
        )
        return builder.call(counter, arguments)

    return types.int64(types.uint64), codegen


@compiled
def count_kept(weight, counts, first, last):  # type: ignore[no-untyped-def]
    """Write how many weights of each group have a bit set."""
    rows, columns = weight.shape
    for group in range(first, last):
        kept = 0
        for row in range(ROWS * group, min(rows, ROWS * (group + 1))):
            for column in range(columns):
                kept += weight[row, column] != 0
        counts[group] = kept


@compiled
def pack_groups(weight, wide, packed, first, last):  # type: ignore[no-untyped-def]
    """Write the masks and the values of each group.

    Args:
        packed: (masks [groups, steps], values, offsets [groups + 1]); the first two are written.
    """
    masks, values, offsets = packed
    rows, columns = weight.shape
    # a group is collected apart: a zero that is overwritten next may not hit another group's value
    found = np.empty(ROWS * columns + 1, dtype=weight.dtype)
    for group in range(first, last):
        top = ROWS * group
        high = min(ROWS, rows - top)
        kept = 0
        for step in range(masks.shape[1]):
            left = step * wide
            many = min(wide, columns - left)
            bits = np.uint64(0)
            for row in range(high):
                for column in range(many):
                    value = weight[top + row, left + column]
                    some = value != 0
                    found[kept] = value
                    kept += some
                    bits |= np.uint64(some) << np.uint64(wide * row + column)
            masks[group, step] = bits
        begin = offsets[group]
        for index in range(kept):
            values[begin + index] = found[index]


@compiled
def unpack_groups(packed, wide, weight, first, last):  # type: ignore[no-untyped-def]
    """Write the rows of each group; the masks and offsets must have been checked.

    Args:
        packed: (masks [groups, steps], values with one more at their end, offsets).
    """
    masks, values, offsets = packed
    rows, columns = weight.shape
    for group in range(first, last):
        top = ROWS * group
        high = min(ROWS, rows - top)
        index = offsets[group]
        for step in range(masks.shape[1]):
            bits = np.uint64(masks[group, step])
            left = step * wide
            many = min(wide, columns - left)
            for row in range(high):
                for column in range(many):
                    some = (bits >> np.uint64(wide * row + column)) & np.uint64(1)
                    # as a product, for a branch would be mispredicted every other time
                    weight[top + row, left + column] = values[index] * some
                    index += np.int64(some)


@compiled
def first_outside(masks, allowed, last_step):  # type: ignore[no-untyped-def]
    """The first group with a bit for a row or column that the matrix has not; -1 if there is none.

    Args:
        allowed: bits of the rows of the last group.
        last_step: bits of the columns of the last step.
    """
    groups, steps = masks.shape
    if steps == 0 or groups == 0:
        return -1
    for group in range(groups):
        if np.uint64(masks[group, steps - 1]) & ~np.uint64(last_step):
            return group
    for step in range(steps):
        if np.uint64(masks[groups - 1, step]) & ~np.uint64(allowed):
            return groups - 1
    return -1


@compiled
def count_bits(masks, counts, first, last):  # type: ignore[no-untyped-def]
    """Write how many bits the masks of each group have."""
    for group in range(first, last):
        kept = 0
        for step in range(masks.shape[1]):
            kept += ones(np.uint64(masks[group, step]))
        counts[group] = kept


@compiled
def first_zero(values):  # type: ignore[no-untyped-def]
    """The index of the first value without a bit; -1 if there is none."""
    for index in range(len(values)):
        if values[index] == 0:
            return index
    return -1
