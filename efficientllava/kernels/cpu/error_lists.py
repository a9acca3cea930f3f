"""Lists of a tile's nonzero errors, and their spread to the columns on the right."""

from __future__ import annotations

from efficientllava.kernels.cpu.arguments import Lists
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
def list_errors(lost, members, rows, wide, lists):  # type: ignore[no-untyped-def]
    """Per row the columns in which a member has an error, and all members' errors in them.

    Close together: lists of equal length for every row would leave half of a cache's sets unused.

    Args:
        lost: errors of a tile, [members, rows, columns].
        lists: of the tile, see `arguments.Lists`; changed in place.
    """
    index, value, begins = lists.columns, lists.errors, lists.begins
    gap, apart = lost.shape[1] * lost.shape[2], value.shape[1]
    count = 0
    for row in range(rows):
        error = lost[0, row]
        if members == 3:
            count = list_three_rows(
                error.ctypes, gap, count, wide, index.ctypes, value.ctypes, apart
            )
        elif members == 2:
            count = list_two_rows(error.ctypes, gap, count, wide, index.ctypes, value.ctypes, apart)
        else:
            count = list_row(error.ctypes, gap, count, wide, index.ctypes, value.ctypes, apart)
        begins[row + 1] = count


@compiled
def spread_tile(factors, lists, weights, tiles, tile, coming):  # type: ignore[no-untyped-def]
    """Spread the listed errors of a tile to one panel [rows, 64] of the weights."""
    index, value, begins = lists.columns, lists.errors, lists.begins
    members = tiles.members[tile]
    top, rows = tiles.bounds[tile, 0], tiles.bounds[tile, 1] - tiles.bounds[tile, 0]
    apart, further, ahead = value.shape[1], tiles.gaps[tile] * PANEL, 4 * PANEL
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
    stack, factors, first_panel, lists, tiles, first_tile, last_tile
):
    """Spread the errors of several blocks of columns past the last of them.

    The panel of a tile's weights stays in the cache while one block after the other changes it.

    Args:
        factors: U of the blocks' rows, [blocks, panels, columns, 64].
        lists: [blocks, tiles, ...].
    """
    blocks, panels = factors.shape[0], factors.shape[1]
    for tile in range(first_tile, last_tile):
        for panel in range(panels):
            for block in range(blocks):
                if block + 1 < blocks:
                    coming = factors[block + 1, panel]
                else:
                    coming = factors[0, (panel + 1) % panels]
                of_tile = Lists(
                    lists.columns[block, tile], lists.errors[block, tile], lists.begins[block, tile]
                )
                weights = stack[first_panel + panel]
                spread_tile(factors[block, panel], of_tile, weights, tiles, tile, coming)
