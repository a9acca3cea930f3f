"""The columns of a block, pruned one by one: a strip of rows at a time, compiled.

A strip of 32 rows goes through all columns of the block within the first-level cache, with its
rows side by side.
"""

from __future__ import annotations

import numpy as np

from efficientllava.kernels.cpu.error_lists import TILE, list_errors, spread_tile
from efficientllava.kernels.cpu.vector_kernel import (
    LANES,
    PANEL,
    STRIP,
    compiled,
    spread_column,
    spread_eight_columns,
    spread_four_columns,
    turn_square,
)

ABOVE_ALL = np.uint32(0xFFFFFFFF)


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
        index, value, begins: the lists of tiles, see `list_errors`.
        right: U of the next columns, [panels, columns, 64].
    """
    width = len(inner)
    wide = -(-width // LANES) * LANES
    weights = np.zeros((wide, STRIP), dtype=np.float32)
    errors = np.zeros((wide, STRIP), dtype=np.float32)
    ranks = np.zeros((wide, STRIP), dtype=np.uint32)
    # rows 64 bytes more apart: else they share few of the cache's sets
    lost = np.zeros((value.shape[1], TILE, wide + LANES), dtype=np.float32)
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
        list_errors(lost, members[tile], rows, wide, index[tile], value[tile], begins[tile])
        for panel in range(len(right)):
            spread_tile(
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
            own, lost, rank = weights[column], errors[column], ranks[column]
            scale = diagonal[column]
            below = ABOVE_ALL if no_input[column] else limit
            for row in range(STRIP):
                quotient = own[row] / scale
                chosen = rank[row] < below
                lost[row] = quotient if chosen else zero
                own[row] = zero if chosen else own[row]
            if column + 1 < last:
                spread_column(
                    weights[column + 1].ctypes,
                    errors[column].ctypes,
                    inner[column + 1, column:].ctypes,
                    width,
                    last - column - 1,
                )
        done, after = first, width - last
        while after and done < last:
            weight, error = weights[last].ctypes, errors[done].ctypes
            factor = inner[last, done:].ctypes
            if done + 8 <= last:
                spread_eight_columns(weight, error, factor, width, after)
                done += 8
            elif done + 4 <= last:
                spread_four_columns(weight, error, factor, width, after)
                done += 4
            else:
                spread_column(weight, error, factor, width, after)
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
