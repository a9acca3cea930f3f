"""Which weights of a block of columns are pruned: radix selection of the smallest, compiled.

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
    stack,
    start,
    width,
    diagonal,
    live,
    keys,
    bounds,
    tile_section,
    members,
    gaps,
    first,
    last,
    histogram,
):
    """Write the keys of w^2 / U_jj^2 and count their first digits.

    Args:
        live: [columns] uint32, `ALL_BITS` of an input that is used, else 0: its keys are 0.
    """
    score = np.empty(PANEL, dtype=np.float32)
    bits = score.view(np.uint32)
    for tile in range(first, last):
        for member in range(members[tile]):
            counted = histogram[tile_section[tile] + member]
            offset = member * gaps[tile]
            for row in range(bounds[tile, 0] + offset, bounds[tile, 1] + offset):
                column = 0
                while column < width:
                    panel, left = (start + column) // PANEL, (start + column) % PANEL
                    many = min(PANEL - left, width - column)
                    weight, key = stack[panel, row, left:], keys[row, column:]
                    scale, used = diagonal[column:], live[column:]
                    for place in range(many):
                        quotient = weight[place] / scale[place]
                        score[place] = quotient * quotient
                    for place in range(many):
                        key[place] = (bits[place] + np.uint32(1)) & used[place]
                    column += many
                key = keys[row]
                for column in range(width):
                    counted[key[column] >> np.uint32(FIRST)] += 1


@compiled
def later_digits(  # type: ignore[no-untyped-def]
    width, keys, prefix, shift, above, bounds, tile_section, members, gaps, first, last, histogram
):
    """Count the next digit of the keys that begin with the section's prefix."""
    low, high = np.uint32(shift), np.uint32(above)
    kept = np.uint32((1 << (above - shift)) - 1)
    for tile in range(first, last):
        for member in range(members[tile]):
            section, offset = tile_section[tile] + member, member * gaps[tile]
            counted, wanted = histogram[section], prefix[section]
            for row in range(bounds[tile, 0] + offset, bounds[tile, 1] + offset):
                key = keys[row]
                for column in range(width):
                    if key[column] >> high == wanted:
                        counted[(key[column] >> low) & kept] += 1


@compiled
def demote(keys, width, top, bottom, wanted, allowed):  # type: ignore[no-untyped-def]
    """Of equal keys the first `allowed` in row-major order stay; the others count as larger."""
    for row in range(top, bottom):
        for column in range(width):
            if keys[row, column] == wanted:
                if allowed > 0:
                    allowed -= 1
                else:
                    keys[row, column] = wanted + np.uint32(1)
