"""The inside of a block of columns on a GPU, in Triton: mask selection and the column loop of OBS.

The stack is [rows, columns] row-major, as the trailing matrix product wants it. One warp takes 32
rows through a block, 32 columns at a time: 1024 weights are 32 registers a lane, and Triton lays
such a panel out so that 8 lanes share a row and every instruction serves 4 rows. (A tile of all 128
columns gives each warp whole rows: an instruction serves one row, a column takes 5 shuffles
a row instead of 3 for four rows, updates go over all 128 columns: 79 instructions a row and column
where this takes 17.) The column that is pruned is a masked sum over the panel; a row's mask is
one integer, a bit for each of the 32 columns; errors are written column by column, [columns, rows],
and read back by the panels to the right. U is read row by row from the first-level cache.

Compiled by ptxas for sm_90: 347 instructions for a column of a panel, 88 to spread one earlier
column over it, 179 registers, nothing spilled, 11 warps on a multiprocessor. Per 4096 weights
128 x 347 + 192 x 88 + 4 x 1630 (masks) = 68,000 instructions of a warp. For a 7B block at five
levels, 1.01e9 weights, at 132 x 4 a clock and 1.7 GHz: 19 ms if every slot is used. Traffic is 4
bytes a weight in and 8 out: 4 ms at 3 TB/s; the errors read back (6 bytes a weight) are cached.

Products and differences are rounded one by one and divisions as IEEE asks, in the order of the
columns, as in the eager path: inside a block both give the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

BINS: int = 256
"""A pass of the selection looks at 8 bits of the keys; four passes at all."""
PANEL: tl.constexpr = tl.constexpr(32)
"""Columns whose weights are in registers at a time."""


@triton.jit
def _keys(weight, diagonal, no_input):  # type: ignore[no-untyped-def]
    """Scores (w / U_jj)^2 as integers of the same order, plus 1; 0 for dead inputs.

    Scores are not negative, so that the order of their bits is that of their values.
    """
    quotient = tl.div_rn(weight, diagonal)
    bits = (quotient * quotient).to(tl.int32, bitcast=True) + 1
    return tl.where(no_input != 0, 0, bits)


@triton.jit
def _tile(  # type: ignore[no-untyped-def]  # noqa: PLR0913 Triton passes each pointer and size
    stack,
    upper,
    dead,
    top,
    bottom,
    columns,
    width,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """A tile's (places, which of them exist, weights, keys).

    stack, upper and dead point to the block's first column: stack [rows, width], upper
    [width, width], both with `columns` from row to row.
    """
    row = top + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    exists = (row < bottom)[:, None] & (column < width)[None, :]
    place = stack + row.to(tl.int64)[:, None] * columns + column[None, :]
    weight = tl.load(place, mask=exists, other=0.0)
    diagonal = tl.load(upper + column * (columns + 1), mask=column < width, other=1.0)
    no_input = tl.load(dead + column, mask=column < width, other=0)
    return place, exists, weight, _keys(weight, diagonal[None, :], no_input[None, :])


@triton.jit
def count_digits(  # type: ignore[no-untyped-def]  # noqa: PLR0913 Triton passes each pointer and size
    stack,
    upper,
    dead,
    tops,
    bottoms,
    sections,
    prefixes,
    histograms,
    columns,
    width,
    FIRST: tl.constexpr,
    SHIFT: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BINS: tl.constexpr,
):
    """Count a tile's keys by their digit at SHIFT, those whose higher digits are the prefix.

    Args:
        histograms: [sections, BINS], added to.
    """
    tile = tl.program_id(0)
    top, bottom = tl.load(tops + tile), tl.load(bottoms + tile)
    section = tl.load(sections + tile)
    prefix = 0
    if not FIRST:
        prefix = tl.load(prefixes + section)
    counts = tl.zeros([BINS], tl.int32)
    for first in range(top, bottom, ROWS):
        _, exists, _, key = _tile(stack, upper, dead, first, bottom, columns, width, ROWS, WIDTH)
        among = exists
        if not FIRST:
            among = exists & ((key >> (SHIFT + 8)) == prefix)
        digit = (key >> SHIFT) & 255
        size: tl.constexpr = ROWS * WIDTH
        counts += tl.histogram(tl.reshape(digit, [size]), BINS, tl.reshape(among, [size]))
    bins = tl.arange(0, BINS)
    into = histograms + section * BINS + bins
    tl.atomic_add(into, counts, mask=counts > 0, sem="relaxed")


@triton.jit
def narrow(  # type: ignore[no-untyped-def]
    histograms,
    quotas,
    rest,
    prefixes,
    FIRST: tl.constexpr,
    BINS: tl.constexpr,
):
    """Append the digit at which a section's quota is reached to its prefix; empty its histogram.

    Args:
        quotas: [sections], read in the first pass.
        rest: [sections], how many of the keys with this prefix are still to be taken.
    """
    section = tl.program_id(0)
    bins = tl.arange(0, BINS)
    counted = tl.load(histograms + section * BINS + bins)
    upto = tl.cumsum(counted, 0)
    if FIRST:
        quota = tl.load(quotas + section)
        prefix = quota * 0
    else:
        quota = tl.load(rest + section)
        prefix = tl.load(prefixes + section)
    digit = tl.sum((upto < quota).to(tl.int32), 0)
    below = tl.sum(tl.where(bins < digit, counted, 0), 0)
    tl.store(rest + section, quota - below)
    tl.store(prefixes + section, prefix * BINS + digit)
    tl.store(histograms + section * BINS + bins, tl.zeros([BINS], tl.int32))


@triton.jit
def count_equal(  # type: ignore[no-untyped-def]  # noqa: PLR0913 Triton passes each pointer and size
    stack,
    upper,
    dead,
    tops,
    bottoms,
    sections,
    limits,
    equal,
    columns,
    width,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """How many keys of each row are exactly the limit of its section."""
    tile = tl.program_id(0)
    top, bottom = tl.load(tops + tile), tl.load(bottoms + tile)
    limit = tl.load(limits + tl.load(sections + tile))
    for first in range(top, bottom, ROWS):
        _, exists, _, key = _tile(stack, upper, dead, first, bottom, columns, width, ROWS, WIDTH)
        count = tl.sum((exists & (key == limit)).to(tl.int32), 1)
        row = first + tl.arange(0, ROWS)
        tl.store(equal + row, count, mask=row < bottom)


@triton.jit
def share_out(equal, rest, bounds, allowed, STEP: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many of its keys that equal the limit each row may take: the first rows' come first.

    Args:
        bounds: [sections + 1], rows.
        allowed: [rows]; may be negative, or more than there are.
    """
    section = tl.program_id(0)
    top, bottom = tl.load(bounds + section), tl.load(bounds + section + 1)
    left = tl.load(rest + section)
    for first in range(top, bottom, STEP):
        row = first + tl.arange(0, STEP)
        count = tl.load(equal + row, mask=row < bottom, other=0)
        tl.store(allowed + row, left - (tl.cumsum(count, 0) - count), mask=row < bottom)
        left -= tl.sum(count, 0)


@triton.jit
def _smallest_of_group(  # type: ignore[no-untyped-def]
    weight,
    upper,
    dead,
    first,
    columns,
    zeros,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """n:m: bits of the `zeros` smallest of the group at column `first`; of equal ones the left."""
    groups: tl.constexpr = PANEL // GROUP
    here = (tl.arange(0, groups) == first // GROUP)[None, :, None]
    own = tl.sum(tl.where(here, tl.reshape(weight, [ROWS, groups, GROUP]), 0.0), 1)
    member = tl.arange(0, GROUP)
    at = first + member
    diagonal, no_input = tl.load(upper + at * (columns + 1)), tl.load(dead + at)
    key = _keys(own, diagonal[None, :], no_input[None, :])
    mine, other = key[:, :, None], key[:, None, :]
    left = (member[None, :] < member[:, None])[None, :, :]
    rank = tl.sum(((other < mine) | ((other == mine) & left)).to(tl.int32), 2)
    taken = (rank < zeros) | (no_input != 0)[None, :]
    return _bits(taken, at)


@triton.jit
def _bits(chosen, column):  # type: ignore[no-untyped-def]
    """A row's mask as one integer: bit `column` is set where the column is chosen."""
    return tl.sum(chosen.to(tl.int32) << column[None, :], 1)


@triton.jit
def prune_tile(  # type: ignore[no-untyped-def]  # noqa: PLR0913 Triton passes each pointer and size
    stack,
    errors,
    upper,
    dead,
    tops,
    bottoms,
    sections,
    limits,
    allowed,
    counts,
    columns,
    width,
    stride,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Choose a tile's mask and prune it column by column; GROUP is 0 when unstructured.

    Args:
        stack: the block [rows, width], changed in place.
        errors: [width, rows], `stride` from line to line, written: (w_j - w^_j) / U_jj.
        upper, dead: of the factor, the block's part; zero below the diagonal.
        tops, bottoms, sections: of the tiles (second grid axis: parts of ROWS rows).
        limits: [sections], keys below it are pruned; `allowed` [rows] of those that equal it.
        counts: [sections], zeros of a group of an n:m pattern.
    """
    tile = tl.program_id(0)
    top = tl.load(tops + tile) + tl.program_id(1) * ROWS
    bottom, section = tl.load(bottoms + tile), tl.load(sections + tile)
    row = top + tl.arange(0, ROWS)
    live = row < bottom
    column = tl.arange(0, PANEL)
    limit, zeros = tl.load(limits + section), tl.load(counts + section)
    share = tl.load(allowed + row, mask=live, other=0)
    for first in range(0, width, PANEL):
        # the mask is that of the weights as they were when the block began
        place, exists, weight, key = _tile(
            stack + first,
            upper + first * (columns + 1),
            dead + first,
            top,
            bottom,
            columns,
            width - first,
            ROWS,
            PANEL,
        )
        if GROUP == 0:
            equal = exists & (key == limit)
            first_ones = tl.cumsum(equal.to(tl.int32), 1) <= share[:, None]
            share -= tl.sum(equal.to(tl.int32), 1)
            # dead inputs, which are in the quota, have the smallest keys
            goes = _bits(exists & ((key < limit) | (equal & first_ones)), column)
        else:
            goes = row * 0
        # spread the errors of the earlier panels, column by column
        line, error_line = upper + first, errors
        for _ in range(first):
            factor = tl.load(line + column, mask=column < width - first, other=0.0)
            error = tl.load(error_line + row, mask=live, other=0.0)
            weight -= error[:, None] * factor[None, :]
            line += columns
            error_line += stride
        for j in range(tl.minimum(PANEL, width - first)):
            if GROUP != 0:
                if j % GROUP == 0:
                    goes |= _smallest_of_group(
                        weight,
                        upper + first * (columns + 1),
                        dead + first,
                        j,
                        columns,
                        zeros,
                        ROWS,
                        GROUP,
                    )
            # columns up to j: U is zero there, or the weight is done with
            factor = tl.load(line + column, mask=column < width - first, other=0.0)
            mine = tl.sum(tl.where((column == j)[None, :], weight, 0.0), 1)
            gone = tl.where(((goes >> j) & 1) != 0, mine, 0.0)
            error = tl.div_rn(gone, tl.load(line + j))
            tl.store(error_line + row, error, mask=live)
            weight -= error[:, None] * factor[None, :]
            line += columns
            error_line += stride
        done = ((goes[:, None] >> column[None, :]) & 1) != 0
        tl.store(place, tl.where(done, 0.0, weight), mask=exists)
        tl.debug_barrier()  # the next panel reads the errors that other threads have written
