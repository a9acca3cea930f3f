"""Loops over the groups of a matrix: count, pack, unpack, compare. Compiled when first imported.

All arrays are unsigned integers of the weights' size: bits, not numbers. Groups `first` to `last`
are worked on, so that threads share a matrix.
"""

from __future__ import annotations

from collections.abc import Callable
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


def _packer(wide: int) -> Callable[..., None]:
    """`pack_groups` for steps of `wide` columns: loops of known length are unrolled."""

    @compiled
    def pack_groups(weight, packed, first, last):  # type: ignore[no-untyped-def]
        masks, values, offsets = packed
        rows, columns = weight.shape
        # a group is collected apart: a zero that is overwritten next may not hit another group
        found = np.empty(ROWS * columns + 1, dtype=weight.dtype)
        for group in range(first, last):
            top, kept = ROWS * group, 0
            block = weight[top : min(rows, top + ROWS)]
            whole = columns // wide if top + ROWS <= rows else 0
            for step in range(whole):
                bits = np.uint64(0)
                for row in range(ROWS):
                    for column in range(wide):
                        value = block[row, step * wide + column]
                        some = value != 0
                        found[kept] = value
                        kept += some
                        bits |= np.uint64(some) << np.uint64(wide * row + column)
                masks[group, step] = bits
            for step in range(whole, masks.shape[1]):
                bits = np.uint64(0)
                for row in range(block.shape[0]):
                    for column in range(min(wide, columns - step * wide)):
                        value = block[row, step * wide + column]
                        some = value != 0
                        found[kept] = value
                        kept += some
                        bits |= np.uint64(some) << np.uint64(wide * row + column)
                masks[group, step] = bits
            values[offsets[group] : offsets[group] + kept] = found[:kept]

    return pack_groups


def _unpacker(wide: int) -> Callable[..., None]:
    """`unpack_groups` for steps of `wide` columns."""

    @compiled
    def unpack_groups(packed, weight, first, last):  # type: ignore[no-untyped-def]
        masks, values, offsets = packed
        rows, columns = weight.shape
        for group in range(first, last):
            top = ROWS * group
            index = offsets[group]
            whole = columns // wide if top + ROWS <= rows else 0
            block = weight[top : min(rows, top + ROWS)]
            for step in range(whole):
                bits = np.uint64(masks[group, step])
                for row in range(ROWS):
                    for column in range(wide):
                        some = (bits >> np.uint64(wide * row + column)) & np.uint64(1)
                        # as a product, for a branch would be mispredicted every other time
                        block[row, step * wide + column] = values[index] * some
                        index += np.int64(some)
            for step in range(whole, masks.shape[1]):
                bits = np.uint64(masks[group, step])
                for row in range(block.shape[0]):
                    for column in range(min(wide, columns - step * wide)):
                        some = (bits >> np.uint64(wide * row + column)) & np.uint64(1)
                        block[row, step * wide + column] = values[index] * some
                        index += np.int64(some)

    return unpack_groups


pack_groups = {wide: _packer(wide) for wide in (1, 2, 4)}
"""pack_groups[wide](weight, (masks, values, offsets), first, last) writes masks and values."""
unpack_groups = {wide: _unpacker(wide) for wide in (1, 2, 4)}
"""unpack_groups[wide]((masks, values, offsets), weight, first, last) writes rows of the weight.

Masks and offsets must have been checked, and values have one more at their end.
"""


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
