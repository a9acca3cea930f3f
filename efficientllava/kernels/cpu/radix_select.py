"""Radix selection of the weights to prune in a block of columns, compiled.

The digits of a score's bits are counted from the highest on until the quota falls on one value.
"""

from __future__ import annotations

import numpy as np

from efficientllava.kernels.cpu.vector_kernel import PANEL, compiled

FIRST, SECOND, THIRD = 19, 9, 0
"""Bits below each digit of a key: 12, 10 and 9 bits wide; a score's sign is always 0."""
ALL_BITS = np.uint32(0x7FFFFFFF)
"""Of a key: without a sign, so that not even NaN has a digit past the last."""


@compiled
def first_digits(  # type: ignore[no-untyped-def]
    stack, scored, keys, tiles, first, last, histogram
):
    """Write the keys of w^2 / U_jj^2 and count their first digits.

    Args:
        scored, tiles: see `arguments`; `scored.live` has `ALL_BITS` or 0: then its keys are 0.
    """
    start, diagonal, live = scored.start, scored.diagonal, scored.live
    width = len(diagonal)
    score = np.empty(PANEL, dtype=np.float32)
    bits = score.view(np.uint32)
    for tile in range(first, last):
        for member in range(tiles.members[tile]):
            counted = histogram[tiles.section[tile] + member]
            offset = member * tiles.gaps[tile]
            for row in range(tiles.bounds[tile, 0] + offset, tiles.bounds[tile, 1] + offset):
                column = 0
                while column < width:
                    panel, left = (start + column) // PANEL, (start + column) % PANEL
                    many = min(PANEL - left, width - column)
                    weight, key = stack[panel, row, left:], keys[row, column:]
                    scale, used = diagonal[column:], live[column:]
                    for index in range(many):
                        quotient = weight[index] / scale[index]
                        score[index] = quotient * quotient
                    for index in range(many):
                        key[index] = (bits[index] + np.uint32(1)) & used[index]
                    column += many
                key = keys[row]
                for column in range(width):
                    counted[key[column] >> np.uint32(FIRST)] += 1


@compiled
def later_digits(  # type: ignore[no-untyped-def]
    width, keys, digit, tiles, first, last, histogram
):
    """Count the next digit of the keys that begin with the section's prefix."""
    shift, above = digit.shift, digit.above
    low, high = np.uint32(shift), np.uint32(above)
    kept = np.uint32((1 << (above - shift)) - 1)
    for tile in range(first, last):
        for member in range(tiles.members[tile]):
            section, offset = tiles.section[tile] + member, member * tiles.gaps[tile]
            counted, prefix = histogram[section], digit.prefix[section]
            for row in range(tiles.bounds[tile, 0] + offset, tiles.bounds[tile, 1] + offset):
                key = keys[row]
                for column in range(width):
                    if key[column] >> high == prefix:
                        counted[(key[column] >> low) & kept] += 1


@compiled
def demote(keys, width, top, bottom, limit, allowed):  # type: ignore[no-untyped-def]
    """Of equal keys the first `allowed` in row-major order stay; the others count as larger."""
    for row in range(top, bottom):
        for column in range(width):
            if keys[row, column] == limit:
                if allowed > 0:
                    allowed -= 1
                else:
                    keys[row, column] = limit + np.uint32(1)
