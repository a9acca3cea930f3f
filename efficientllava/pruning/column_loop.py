"""The loops of the compiled OBS kernel: masks by radix selection, the columns of a block.

Compiled by numba without leave to reorder sums, so that a run repeats another bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from efficientllava.pruning.vector_kernel import PANEL, spread_row

TILE = 256
"""Rows of a tile: two tiles of 128 columns are 256 KiB, within a core's second-level cache."""
FIRST, SECOND, THIRD = 19, 9, 0
"""Bits below each digit of a key: 12, 10 and 9 bits wide; a score's sign is always 0."""

compiled: Callable[..., Any] = numba.njit(nogil=True, cache=True, error_model="numpy")


@compiled
def into_panels(source, target):  # type: ignore[no-untyped-def]
    """Copy rows [rows, columns] into panels [panels, rows, 64]; zeros past the last column."""
    rows, columns = source.shape
    for panel in range(len(target)):
        left = panel * PANEL
        width = min(PANEL, columns - left)
        for row in range(rows):
            for column in range(width):
                target[panel, row, column] = source[row, left + column]
            for column in range(width, PANEL):
                target[panel, row, column] = np.float32(0.0)


@compiled
def _turn(stack, start, turned, top, rows):  # type: ignore[no-untyped-def]
    """Columns start.. of a tile with rows side by side, [columns, rows]."""
    width = len(turned)
    for left in range(0, width, 16):
        for low in range(0, rows, 16):
            for column in range(left, min(left + 16, width)):
                panel, offset = (start + column) // PANEL, (start + column) % PANEL
                for row in range(low, min(low + 16, rows)):
                    turned[column, row] = stack[panel, top + row, offset]


@compiled
def _turn_back(weights, start, solution, top, rows):  # type: ignore[no-untyped-def]
    width = len(weights)
    for low in range(0, rows, 16):
        for left in range(0, width, 16):
            for row in range(low, min(low + 16, rows)):
                for column in range(left, min(left + 16, width)):
                    solution[top + row, start + column] = weights[column, row]


@compiled
def first_digits(  # type: ignore[no-untyped-def]
    stack, start, width, turned, diagonal, no_input, keys, bounds, section, first, last, histogram
):
    """Write the keys of w^2 / U_jj^2 and count their first digits; 0 is an input without use."""
    score = np.empty(TILE, dtype=np.float32)
    bits = score.view(np.uint32)
    for tile in range(first, last):
        top, rows = bounds[tile, 0], bounds[tile, 1] - bounds[tile, 0]
        counted = histogram[section[tile]]
        columns = turned[tile, :width]
        _turn(stack, start, columns, top, rows)
        for column in range(width):
            weight, key = columns[column], keys[tile, column]
            scale = diagonal[column]
            for row in range(rows):
                quotient = weight[row] / scale
                score[row] = quotient * quotient
            if no_input[column]:
                key[:] = 0
            else:
                for row in range(rows):
                    key[row] = bits[row] + np.uint32(1)
            for row in range(rows):
                counted[key[row] >> np.uint32(FIRST)] += 1


@compiled
def later_digits(  # type: ignore[no-untyped-def]
    width, keys, prefix, shift, above, bounds, section, first, last, histogram
):
    """Count the next digit of the keys that begin with the section's prefix."""
    low, high = np.uint32(shift), np.uint32(above)
    kept = np.uint32((1 << (above - shift)) - 1)
    for tile in range(first, last):
        rows = bounds[tile, 1] - bounds[tile, 0]
        counted = histogram[section[tile]]
        wanted = prefix[section[tile]]
        for column in range(width):
            key = keys[tile, column]
            for row in range(rows):
                if key[row] >> high == wanted:
                    counted[(key[row] >> low) & kept] += 1


@compiled
def demote(keys, width, bounds, first, last, wanted, allowed):  # type: ignore[no-untyped-def]
    """Of equal keys the first `allowed` in row-major order stay; the others count as larger."""
    for tile in range(first, last):
        for row in range(bounds[tile, 1] - bounds[tile, 0]):
            for column in range(width):
                if keys[tile, column, row] == wanted:
                    if allowed > 0:
                        allowed -= 1
                    else:
                        keys[tile, column, row] = wanted + np.uint32(1)


@compiled
def prune_columns(  # type: ignore[no-untyped-def]
    stack,
    start,
    turned,
    upper,
    diagonal,
    no_input,
    keys,
    limits,
    counts,
    group,
    bounds,
    section,
    first_tile,
    last_tile,
    errors,
    solution,
    right,
    first_panel,
):
    """The column loop: prune column by column, spread the error to those on the right.

    Every weight is changed by the columns on its left in their order, as in the eager path; the
    columns are taken eight (m) at a time so that a weight is loaded once for four changes.
    """
    width = len(upper)
    step = group if group else 8
    pruned = np.empty((step, TILE), dtype=np.bool_)
    index = np.empty(TILE * width + 1, dtype=np.uint16)
    value = np.empty(TILE * width + 1, dtype=np.float32)
    begins = np.zeros(TILE + 1, dtype=np.int64)
    zero = np.float32(0.0)
    for tile in range(first_tile, last_tile):
        top, rows = bounds[tile, 0], bounds[tile, 1] - bounds[tile, 0]
        limit, count = limits[section[tile]], counts[section[tile]]
        weights, error = turned[tile, :width], errors[tile]
        for first in range(0, width, step):
            last = min(first + step, width)
            if group:
                _group_mask(weights, diagonal, no_input, first, last, rows, count, pruned)
            else:
                for column in range(first, last):
                    key = keys[tile, column]
                    chosen = pruned[column - first]
                    for row in range(rows):
                        chosen[row] = key[row] < limit
            for column in range(first, last):
                weight, lost, chosen = weights[column], error[column], pruned[column - first]
                scale = diagonal[column]
                if no_input[column]:
                    for row in range(rows):
                        lost[row] = weight[row] / scale
                        weight[row] = zero
                else:
                    for row in range(rows):
                        quotient = weight[row] / scale
                        lost[row] = quotient if chosen[row] else zero
                        weight[row] = zero if chosen[row] else weight[row]
                for after in range(column + 1, last):
                    _spread(weights[after], lost, upper[column, after], rows)
            for after in range(last, width):
                weight = weights[after]
                done = first
                while done + 4 <= last:
                    _spread_four(weight, error, upper[:, after], done, rows)
                    done += 4
                while done < last:
                    _spread(weight, error[done], upper[done, after], rows)
                    done += 1
        _turn_back(weights, start, solution, top, rows)
        if len(right):
            _list_errors(error[:width], rows, index, value, begins)
            for panel in range(len(right)):
                _spread_rows(
                    right[panel],
                    index,
                    value,
                    begins,
                    stack[first_panel + panel],
                    top,
                    rows,
                    right[(panel + 1) % len(right)],
                )


@compiled
def _list_errors(error, rows, index, value, begins):  # type: ignore[no-untyped-def]
    """The columns whose errors are not zero and these errors, one row of a tile after the other.

    Close together: lists of equal length for every row would leave half of a cache's sets unused.
    """
    found = 0
    for row in range(rows):
        for column in range(len(error)):
            index[found] = column
            value[found] = error[column, row]
            found += error[column, row] != np.float32(0.0)
        begins[row + 1] = found


@compiled
def _spread_rows(factors, index, value, begins, weights, top, rows, coming):  # type: ignore[no-untyped-def]
    for row in range(rows):
        begin = begins[row]
        spread_row(
            factors.ctypes,
            index[begin:].ctypes,
            value[begin:].ctypes,
            begins[row + 1] - begin,
            weights[top + row].ctypes,
            4 * PANEL,
            coming[row // 2 % len(coming), row % 2 * 32 :].ctypes,
        )


@compiled
def spread_blocks(  # type: ignore[no-untyped-def]
    errors, blocks, stack, factors, first_panel, bounds, first_tile, last_tile
):
    """Spread the errors of several blocks of columns past the last of them.

    The panel of a tile's weights stays in the cache while one block after the other changes it.

    Args:
        errors: [blocks, tiles, columns, rows of a tile and more].
        factors: U of the blocks' rows, [blocks, panels, columns, 64].
    """
    width = errors.shape[2]
    index = np.empty((blocks, TILE * width + 1), dtype=np.uint16)
    value = np.empty((blocks, TILE * width + 1), dtype=np.float32)
    begins = np.zeros((blocks, TILE + 1), dtype=np.int64)
    for tile in range(first_tile, last_tile):
        top, rows = bounds[tile, 0], bounds[tile, 1] - bounds[tile, 0]
        for block in range(blocks):
            _list_errors(errors[block, tile], rows, index[block], value[block], begins[block])
        for panel in range(factors.shape[1]):
            weights = stack[first_panel + panel]
            for block in range(blocks):
                if block + 1 < blocks:
                    coming = factors[block + 1, panel]
                else:
                    coming = factors[0, (panel + 1) % factors.shape[1]]
                _spread_rows(
                    factors[block, panel],
                    index[block],
                    value[block],
                    begins[block],
                    weights,
                    top,
                    rows,
                    coming,
                )


@compiled
def _spread(weight, error, factor, rows):  # type: ignore[no-untyped-def]
    for row in range(rows):
        weight[row] -= error[row] * factor


@compiled
def _spread_four(weight, error, factors, done, rows):  # type: ignore[no-untyped-def]
    """Four columns' errors, one after the other: the order of additions is that of the columns."""
    first, second, third, fourth = error[done], error[done + 1], error[done + 2], error[done + 3]
    a, b, c, d = factors[done], factors[done + 1], factors[done + 2], factors[done + 3]
    for row in range(rows):
        value = weight[row] - first[row] * a
        value = value - second[row] * b
        value = value - third[row] * c
        weight[row] = value - fourth[row] * d


@compiled
def _group_mask(weights, diagonal, no_input, first, last, rows, count, pruned):  # type: ignore[no-untyped-def]
    """n:m: the `count` smallest of a group; of equal ones the left."""
    scores = np.empty((last - first, rows), dtype=np.float32)
    for column in range(first, last):
        for row in range(rows):
            quotient = weights[column, row] / diagonal[column]
            scores[column - first, row] = quotient * quotient
            if no_input[column]:
                scores[column - first, row] = np.float32(-1.0)
    for column in range(last - first):
        for row in range(rows):
            rank = 0
            mine = scores[column, row]
            for other in range(last - first):
                theirs = scores[other, row]
                if theirs < mine or (theirs == mine and other < column):
                    rank += 1
            pruned[column, row] = rank < count
