"""The loops of the compiled OBS kernel: masks by radix selection, the columns of a block.

Compiled by numba without leave to reorder sums, so that a run repeats another bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from efficientllava.pruning.vector_kernel import (
    LANES,
    PANEL,
    STRIP,
    list_row,
    list_three_rows,
    list_two_rows,
    spread_column,
    spread_eight_columns,
    spread_four_columns,
    spread_row,
    spread_three_rows,
    spread_two_rows,
    turn_square,
)

TILE = 128
"""Rows of a tile: of three levels, with the lists of 512 columns, 600 KiB of second-level cache."""
FIRST, SECOND, THIRD = 19, 9, 0
"""Bits below each digit of a key: 12, 10 and 9 bits wide; a score's sign is always 0."""
ABOVE_ALL = np.uint32(0xFFFFFFFF)

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
        live: [columns] uint32, all bits of an input that is used, else none: its keys are 0.
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


@compiled
def prune_columns(  # type: ignore[no-untyped-def]
    stack,
    start,
    inner,
    diagonal,
    no_input,
    keys,
    limits,
    counts,
    group,
    bounds,
    tile_section,
    members,
    gaps,
    first_tile,
    last_tile,
    index,
    value,
    begins,
    solution,
    right,
    first_panel,
):
    """Prune a block's columns one by one, list the errors, spread them to the next columns.

    Every weight is changed by the columns on its left in their order, as in the eager path.

    Args:
        inner: U of the block, columns as rows.
        keys: [rows, columns], unused in groups.
        limits, counts: [sections], the key from which on weights stay; zeros in a group.
        group: columns of a group, or 0.
        index, value, begins: the lists of tiles, see `_list_errors`.
        right: U of the next columns, [panels, columns, 64].
    """
    width = len(inner)
    wide = -(-width // LANES) * LANES
    weights = np.zeros((wide, STRIP), dtype=np.float32)
    errors = np.zeros((wide, STRIP), dtype=np.float32)
    ranks = np.zeros((wide, STRIP), dtype=np.uint32)
    # rows 64 bytes more apart: else they share few of the cache's sets
    lost = np.zeros((3, TILE + STRIP, wide + LANES), dtype=np.float32)
    for tile in range(first_tile, last_tile):
        rows = bounds[tile, 1] - bounds[tile, 0]
        for member in range(members[tile]):
            section = tile_section[tile] + member
            top = bounds[tile, 0] + member * gaps[tile]
            for low in range(0, rows, STRIP):
                many = min(STRIP, rows - low)
                _take_weights(stack, start, top + low, many, width, weights)
                if not group:
                    _take(keys, top + low, many, width, ranks)
                _prune_strip(
                    weights,
                    errors,
                    ranks,
                    limits[section],
                    inner,
                    diagonal,
                    no_input,
                    group,
                    counts[section],
                )
                _give_back(weights, width, solution, top + low, many, start)
                for column in range(0, wide, LANES):
                    for row in range(0, STRIP, LANES):
                        turn_square(
                            errors[column, row:].ctypes,
                            STRIP,
                            lost[member, low + row, column:].ctypes,
                            wide + LANES,
                        )
        _list_errors(lost, members[tile], rows, wide, index[tile], value[tile], begins[tile])
        for panel in range(len(right)):
            _spread_tile(
                right[panel],
                index[tile],
                value[tile],
                begins[tile],
                stack[first_panel + panel],
                bounds[tile, 0],
                rows,
                members[tile],
                gaps[tile],
                right[(panel + 1) % len(right)],
            )


@compiled
def spread_blocks(  # type: ignore[no-untyped-def]
    index,
    value,
    begins,
    blocks,
    stack,
    factors,
    first_panel,
    bounds,
    members,
    gaps,
    first_tile,
    last_tile,
):
    """Spread the errors of several blocks of columns past the last of them.

    The panel of a tile's weights stays in the cache while one block after the other changes it.

    Args:
        index, value, begins: lists, [blocks, tiles, ...].
        factors: U of the blocks' rows, [blocks, panels, columns, 64].
    """
    for tile in range(first_tile, last_tile):
        top, rows = bounds[tile, 0], bounds[tile, 1] - bounds[tile, 0]
        for panel in range(factors.shape[1]):
            for block in range(blocks):
                if block + 1 < blocks:
                    coming = factors[block + 1, panel]
                else:
                    coming = factors[0, (panel + 1) % factors.shape[1]]
                _spread_tile(
                    factors[block, panel],
                    index[block, tile],
                    value[block, tile],
                    begins[block, tile],
                    stack[first_panel + panel],
                    top,
                    rows,
                    members[tile],
                    gaps[tile],
                    coming,
                )


@compiled
def _take(source, top, many, width, target):  # type: ignore[no-untyped-def]
    """Rows of [rows, columns], turned so that they lie side by side; past them what there was."""
    if many == STRIP and width % LANES == 0:
        columns, strip = source[top:].view(np.float32), target.view(np.float32)
        for column in range(0, width, LANES):
            for row in range(0, STRIP, LANES):
                turn_square(
                    columns[row, column:].ctypes, source.shape[1], strip[column, row:].ctypes, STRIP
                )
    else:
        for column in range(width):
            for row in range(many):
                target[column, row] = source[top + row, column]


@compiled
def _take_weights(stack, start, top, many, width, target):  # type: ignore[no-untyped-def]
    """Columns from `start` of the rows from `top`, turned; zeros where there are no rows."""
    if many < STRIP:
        target[:] = np.float32(0.0)
    if many == STRIP and width % LANES == 0 and start % LANES == 0:
        for column in range(0, width, LANES):
            panel, left = (start + column) // PANEL, (start + column) % PANEL
            for row in range(0, STRIP, LANES):
                turn_square(
                    stack[panel, top + row, left:].ctypes, PANEL, target[column, row:].ctypes, STRIP
                )
    else:
        for column in range(width):
            panel, left = (start + column) // PANEL, (start + column) % PANEL
            for row in range(many):
                target[column, row] = stack[panel, top + row, left]


@compiled
def _give_back(weights, width, solution, top, many, start):  # type: ignore[no-untyped-def]
    if many == STRIP and width % LANES == 0:
        for row in range(0, STRIP, LANES):
            for column in range(0, width, LANES):
                turn_square(
                    weights[column, row:].ctypes,
                    STRIP,
                    solution[top + row, start + column :].ctypes,
                    solution.shape[1],
                )
    else:
        for row in range(many):
            for column in range(width):
                solution[top + row, start + column] = weights[column, row]


@compiled
def _prune_strip(  # type: ignore[no-untyped-def]
    weights, errors, ranks, limit, inner, diagonal, no_input, group, count
):
    """Columns from left to right, eight (m) at a time: these are spread to the rest together."""
    width = len(inner)
    step = group if group else 8
    zero = np.float32(0.0)
    for first in range(0, width, step):
        last = min(first + step, width)
        if group:
            _rank_groups(weights, diagonal, no_input, first, last, ranks)
            limit = np.uint32(count)
        for column in range(first, last):
            weight, error, rank = weights[column], errors[column], ranks[column]
            scale = diagonal[column]
            below = ABOVE_ALL if no_input[column] else limit
            for row in range(STRIP):
                quotient = weight[row] / scale
                chosen = rank[row] < below
                error[row] = quotient if chosen else zero
                weight[row] = zero if chosen else weight[row]
            if column + 1 < last:
                spread_column(
                    weights[column + 1].ctypes,
                    errors[column].ctypes,
                    inner[column + 1, column:].ctypes,
                    width,
                    last - column - 1,
                )
        if last < width:
            done, after = first, width - last
            while done + 8 <= last:
                spread_eight_columns(
                    weights[last].ctypes,
                    errors[done].ctypes,
                    inner[last, done:].ctypes,
                    width,
                    after,
                )
                done += 8
            while done + 4 <= last:
                spread_four_columns(
                    weights[last].ctypes,
                    errors[done].ctypes,
                    inner[last, done:].ctypes,
                    width,
                    after,
                )
                done += 4
            while done < last:
                spread_column(
                    weights[last].ctypes,
                    errors[done].ctypes,
                    inner[last, done:].ctypes,
                    width,
                    after,
                )
                done += 1


@compiled
def _rank_groups(weights, diagonal, no_input, first, last, ranks):  # type: ignore[no-untyped-def]
    """n:m: the place of each weight in its group by score; of equal ones the left comes first."""
    scores = np.empty((last - first, STRIP), dtype=np.float32)
    for column in range(first, last):
        for row in range(STRIP):
            quotient = weights[column, row] / diagonal[column]
            scores[column - first, row] = quotient * quotient
            if no_input[column]:
                scores[column - first, row] = np.float32(-1.0)
    for column in range(last - first):
        rank = ranks[first + column]
        rank[:] = np.uint32(0)
        for other in range(last - first):
            for row in range(STRIP):
                mine, theirs = scores[column, row], scores[other, row]
                if theirs < mine or (theirs == mine and other < column):
                    rank[row] += np.uint32(1)


@compiled
def _list_errors(lost, members, rows, wide, index, value, begins):  # type: ignore[no-untyped-def]
    """Per row the columns in which a member has an error, and all members' errors in them.

    Close together: lists of equal length for every row would leave half of a cache's sets unused.

    Args:
        lost: errors of a tile, [members, rows, columns].
        index, value: the lists, [entries] and [members, entries].
        begins: [rows + 1], where each row's list begins.
    """
    gap, apart = lost.shape[1] * lost.shape[2], value.shape[1]
    found = 0
    for row in range(rows):
        error = lost[0, row]
        if members == 3:
            found = list_three_rows(
                error.ctypes, gap, found, wide, index.ctypes, value.ctypes, apart
            )
        elif members == 2:
            found = list_two_rows(error.ctypes, gap, found, wide, index.ctypes, value.ctypes, apart)
        else:
            found = list_row(error.ctypes, gap, found, wide, index.ctypes, value.ctypes, apart)
        begins[row + 1] = found


@compiled
def _spread_tile(  # type: ignore[no-untyped-def]
    factors, index, value, begins, weights, top, rows, members, gap, coming
):
    """Spread the listed errors of a tile to one panel [rows, 64] of the weights."""
    apart, further, ahead = value.shape[1], gap * PANEL, 4 * PANEL
    for row in range(rows):
        begin = begins[row]
        many = begins[row + 1] - begin
        panel, weight = factors.ctypes, weights[top + row].ctypes
        columns, errors = index[begin:].ctypes, value[0, begin:].ctypes
        soon = coming[row % len(coming)].ctypes
        if members == 3:
            spread_three_rows(panel, columns, errors, apart, many, weight, further, ahead, soon)
        elif members == 2:
            spread_two_rows(panel, columns, errors, apart, many, weight, further, ahead, soon)
        else:
            spread_row(panel, columns, errors, apart, many, weight, further, ahead, soon)
