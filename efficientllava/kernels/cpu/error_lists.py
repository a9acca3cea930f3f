"""Errors of a tile as lists of what is not zero, and their way to the columns on the right."""

from __future__ import annotations

from efficientllava.kernels.cpu.vector_kernel import (
    PANEL,
    compiled,
    list_row,
    list_three_rows,
    list_two_rows,
    spread_row,
    spread_three_rows,
    spread_two_rows,
)

TILE = 256
"""Rows of a tile: a panel of U is read once for them; their lists should stay in a cache."""


@compiled
def list_errors(lost, members, rows, wide, index, value, begins):  # type: ignore[no-untyped-def]
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
def spread_tile(  # type: ignore[no-untyped-def]
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
                spread_tile(
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
