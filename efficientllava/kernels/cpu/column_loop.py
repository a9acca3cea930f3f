"""The columns of a block, pruned one by one: a strip of rows at a time, compiled.

A strip of 32 rows goes through all columns of the block within the first-level cache, with its
rows side by side.
"""

from __future__ import annotations

import numpy as np

from efficientllava.kernels.cpu.arguments import Lists, Strip
from efficientllava.kernels.cpu.error_lists import TILE, list_errors, spread_tile
from efficientllava.kernels.cpu.vector_kernel import (
    LANES,
    PANEL,
    STRIP,
    compiled,
    spread_column,
    spread_eight_columns,
    spread_four_columns,
    transpose_square,
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
    stack, solution, block, choice, lists, tiles, first_tile, last_tile
):
    """Prune a block's columns one by one, list the errors, spread them to the next columns.

    Every weight is changed by the columns on its left in their order, as in the eager path.

    Args:
        block, choice, lists, tiles: see `arguments`; the lists are [tiles, ...].
    """
    width = len(block.inner)
    wide = -(-width // LANES) * LANES
    strip = Strip(
        np.zeros((wide, STRIP), dtype=np.float32),
        np.zeros((wide, STRIP), dtype=np.float32),
        np.zeros((wide, STRIP), dtype=np.uint32),
    )
    # rows 64 bytes more apart: else they share few of the cache's sets
    lost = np.zeros((lists.errors.shape[1], TILE, wide + LANES), dtype=np.float32)
    for tile in range(first_tile, last_tile):
        rows = tiles.bounds[tile, 1] - tiles.bounds[tile, 0]
        for member in range(tiles.members[tile]):
            section = tiles.section[tile] + member
            top = tiles.bounds[tile, 0] + member * tiles.gaps[tile]
            for low in range(0, rows, STRIP):
                many = min(STRIP, rows - low)
                _take_weights(stack, block.start, top + low, many, width, strip.weights)
                if not choice.group:
                    _take(choice.keys, top + low, many, width, strip.ranks)
                _prune_strip(
                    strip, block, choice.limits[section], choice.group, choice.counts[section]
                )
                _give_back(strip.weights, width, solution, top + low, many, block.start)
                _transpose_errors(strip.errors, lost[member], low)
        of_tile = Lists(lists.columns[tile], lists.errors[tile], lists.begins[tile])
        list_errors(lost, tiles.members[tile], rows, wide, of_tile)
        for panel in range(len(block.right)):
            coming = block.right[(panel + 1) % len(block.right)]
            weights = stack[block.first_panel + panel]
            spread_tile(block.right[panel], of_tile, weights, tiles, tile, coming)


@compiled
def _transpose_errors(errors, lost, low):  # type: ignore[no-untyped-def]
    """Write a strip's errors to rows from `low` of a member's errors [rows, columns + 16]."""
    for column in range(0, len(errors), LANES):
        for row in range(0, STRIP, LANES):
            transpose_square(
                errors[column, row:].ctypes, STRIP, lost[low + row, column:].ctypes, lost.shape[1]
            )


@compiled
def _take(source, top, many, width, target):  # type: ignore[no-untyped-def]
    """Rows of [rows, columns], transposed; entries past them stay unchanged."""
    if many == STRIP and width % LANES == 0:
        columns, strip = source[top:].view(np.float32), target.view(np.float32)
        for column in range(0, width, LANES):
            for row in range(0, STRIP, LANES):
                transpose_square(
                    columns[row, column:].ctypes, source.shape[1], strip[column, row:].ctypes, STRIP
                )
    else:
        for column in range(width):
            for row in range(many):
                target[column, row] = source[top + row, column]


@compiled
def _take_weights(stack, start, top, many, width, target):  # type: ignore[no-untyped-def]
    """Columns from `start` of the rows from `top`, transposed; zeros past the last row."""
    if many < STRIP:
        target[:] = np.float32(0.0)
    if many == STRIP and width % LANES == 0 and start % LANES == 0:
        for column in range(0, width, LANES):
            panel, left = (start + column) // PANEL, (start + column) % PANEL
            for row in range(0, STRIP, LANES):
                transpose_square(
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
                transpose_square(
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
def _prune_strip(strip, block, limit, group, count):  # type: ignore[no-untyped-def]
    """Columns from left to right, eight (m) at a time: these are spread to the rest together."""
    weights, errors, ranks = strip.weights, strip.errors, strip.ranks
    inner, diagonal, no_input = block.inner, block.diagonal, block.no_input
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
