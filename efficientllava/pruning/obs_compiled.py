"""The inside of a block of columns on a CPU, compiled: masks and the column loop of OBS.

What the eager path of `obs` computes, in the same order of additions. A tile of rows goes through
a block of columns without leaving the cache, with its rows side by side, so that a vector register
holds one column of many rows; its errors are then spread to the columns on the right, which lie
in panels of 64 so that memory is read in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import torch

from efficientllava.pruning.vector_kernel import PANEL, spread_row

TILE = 256
"""Rows of a tile: two tiles of 128 columns are 256 KiB, within a core's second-level cache."""
FIRST, SECOND, THIRD = 19, 9, 0
"""Bits below each digit of a key: 12, 10 and 9 bits wide; a score's sign is always 0."""

compiled: Callable[..., Any] = numba.njit(nogil=True, cache=True, error_model="numpy")


@dataclass
class Tiles:
    """The rows of a stack, cut into tiles that do not cross a section, shared among threads.

    Args:
        rows: bounds of the sections (one matrix at one level each).
        threads: how many threads work on them; changes no result.
    """

    rows: Sequence[int]
    threads: int
    bounds: np.ndarray = field(init=False)
    section: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        cut = [
            (top, min(top + TILE, end), index)
            for index, (start, end) in enumerate(pairwise(self.rows))
            for top in range(start, end, TILE)
        ]
        self.bounds = np.array([[top, bottom] for top, bottom, _ in cut], dtype=np.int64)
        self.section = np.array([index for _, _, index in cut], dtype=np.int64)
        self._pool = ThreadPoolExecutor(self.threads) if self.threads > 1 else None

    def run(self, work: Callable[[int, int, int], None]) -> None:
        """Call work(thread, first tile, last tile) on every thread."""
        shares = np.linspace(0, len(self.section), self.threads + 1).astype(int)
        spans = list(zip(range(self.threads), shares, shares[1:], strict=False))
        if self._pool is None:
            work(*spans[0])
        else:
            list(self._pool.map(lambda span: work(*span), spans))

    def span(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """(top, bottom, section) of tiles first..last."""
        for (top, bottom), section in zip(
            self.bounds[first:last].tolist(), self.section[first:last].tolist(), strict=True
        ):
            yield top, bottom, section

    def close(self) -> None:
        """Let the threads go."""
        if self._pool is not None:
            self._pool.shutdown()


def panels(columns: int, rows: int) -> torch.Tensor:
    """An uninitialised stack [panels, rows, 64] that starts where a vector may start.

    From numpy, which asks the system for huge pages: the first use of new memory costs half.
    """
    shape = (-(-columns // PANEL), rows, PANEL)
    size, boundary = shape[0] * shape[1] * shape[2], PANEL
    memory = torch.from_numpy(np.empty(size + boundary, dtype=np.float32))
    skipped = -(memory.data_ptr() // memory.element_size()) % boundary
    return memory[skipped : skipped + size].view(shape)


def stacked(weights: Sequence[torch.Tensor], repetitions: int, tiles: Tiles) -> torch.Tensor:
    """Every matrix [rows_i, columns] `repetitions` times, in panels of 64 columns."""
    stack = panels(weights[0].shape[1], tiles.rows[-1])
    target = stack.numpy()
    sources = [weight.float().contiguous().numpy() for weight in weights]

    def fill(first: int, last: int) -> None:
        for top, bottom, section in tiles.span(first, last):
            offset = tiles.rows[section]
            source = sources[section // repetitions][top - offset : bottom - offset]
            _into_panels(source, target[:, top:bottom])

    tiles.run(lambda thread, first, last: fill(first, last))
    return stack


def unstacked(stack: torch.Tensor, columns: int, tiles: Tiles) -> list[torch.Tensor]:
    """The sections of a stack, each [rows_i, columns]."""
    solutions = [
        np.empty((end - start, columns), dtype=np.float32) for start, end in pairwise(tiles.rows)
    ]
    source = stack.numpy()

    def fill(first: int, last: int) -> None:
        for top, bottom, section in tiles.span(first, last):
            offset = tiles.rows[section]
            into = solutions[section][top - offset : bottom - offset]
            _out_of_panels(source[:, top:bottom], into)

    tiles.run(lambda thread, first, last: fill(first, last))
    return [torch.from_numpy(solution) for solution in solutions]


class Block:
    """The column loop over a stack, block of columns by block of at most `width`.

    Args:
        stack: [panels, rows, 64] float32, changed in place.
        tiles: the same rows.
        upper, dead: of the factor.
        group_size: m of an n:m pattern, with `counts` zeros per group in each section.
    """

    def __init__(
        self,
        stack: torch.Tensor,
        tiles: Tiles,
        upper: torch.Tensor,
        dead: torch.Tensor,
        width: int,
        group_size: int | None,
        counts: Sequence[int],
    ) -> None:
        self.stack, self.tiles, self.group_size = stack.numpy(), tiles, group_size
        self.upper, self.dead = upper, dead.numpy()
        self.turned = np.empty((width, stack.shape[1]), dtype=np.float32)
        self.keys = np.empty((width, stack.shape[1]), dtype=np.uint32)
        self.counts = np.array(counts, dtype=np.int64)

    def prune(self, start: int, end: int, quotas: Sequence[int]) -> None:
        """Choose the masks of columns start..end, prune them, spread the errors to the right.

        Args:
            quotas: pruned weights of each section in these columns (unstructured).
        """
        inner = np.ascontiguousarray(self.upper[start:end, start:end].numpy())
        diagonal = np.ascontiguousarray(inner.diagonal())
        no_input = np.ascontiguousarray(self.dead[start:end])
        limits = self._limits(start, end - start, diagonal, no_input, quotas)
        first_panel = end // PANEL
        right = self._factors(start, end, first_panel)

        def work(thread: int, first: int, last: int) -> None:
            _columns(
                self.stack,
                start,
                self.turned[: end - start],
                inner,
                diagonal,
                no_input,
                self.keys,
                limits,
                self.counts,
                self.group_size or 0,
                self.tiles.bounds[first:last],
                self.tiles.section[first:last],
                right,
                first_panel,
            )

        self.tiles.run(work)

    def _factors(self, start: int, end: int, first_panel: int) -> np.ndarray:
        """U of the block's rows and the columns right of it, [panels, end - start, 64].

        Columns of the first panel that are done, and those past the last, get zeros.
        """
        wide = torch.zeros(end - start, (len(self.stack) - first_panel) * PANEL)
        offset, columns = first_panel * PANEL, len(self.upper)
        wide[:, end - offset : columns - offset] = self.upper[start:end, end:]
        return wide.view(end - start, -1, PANEL).transpose(0, 1).contiguous().numpy()

    def _limits(
        self,
        start: int,
        width: int,
        diagonal: np.ndarray,
        no_input: np.ndarray,
        quotas: Sequence[int],
    ) -> np.ndarray:
        """Per section, the key below which exactly its quota of weights lies (radix selection).

        The first pass also turns the block's columns round, so that rows lie side by side.
        """
        sections = len(quotas)
        rest = np.array(quotas, dtype=np.int64)
        prefix = np.zeros(sections, dtype=np.uint32)
        for shift, above in ((FIRST, 32), (SECOND, FIRST), (THIRD, SECOND)):
            bins = 1 << (min(above, 31) - shift)
            histograms = np.zeros((self.tiles.threads, sections, bins), dtype=np.int64)
            if above == 32:
                turned = self.turned[:width]
                digits = partial(
                    _first_digits, self.stack, start, turned, diagonal, no_input, self.keys
                )
            elif self.group_size is not None:
                break
            else:
                digits = partial(_later_digits, width, self.keys, prefix, shift, above)

            def work(
                thread: int,
                first: int,
                last: int,
                digits: Callable[..., None] = digits,
                into: np.ndarray = histograms,
            ) -> None:
                digits(self.tiles.bounds[first:last], self.tiles.section[first:last], into[thread])

            self.tiles.run(work)
            upto = histograms.sum(axis=0).cumsum(axis=1)
            for index in range(sections):
                # the digit at which the quota is reached
                digit = int(np.searchsorted(upto[index], rest[index]))
                digit = min(digit, bins - 1)
                rest[index] -= upto[index, digit - 1] if digit else 0
                prefix[index] = (int(prefix[index]) << (min(above, 31) - shift)) | digit
                if shift == THIRD:
                    equal = upto[index, digit] - (upto[index, digit - 1] if digit else 0)
                    if equal > rest[index] > 0:
                        top, bottom = self.tiles.rows[index], self.tiles.rows[index + 1]
                        _demote(self.keys, width, top, bottom, prefix[index], rest[index])
        return np.where(np.array(quotas) > 0, prefix + np.uint32(1), np.uint32(0))


@compiled
def _into_panels(source, target):  # type: ignore[no-untyped-def]
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
def _out_of_panels(source, target):  # type: ignore[no-untyped-def]
    rows, columns = target.shape
    for panel in range(len(source)):
        left = panel * PANEL
        width = min(PANEL, columns - left)
        for row in range(rows):
            for column in range(width):
                target[row, left + column] = source[panel, row, column]


@compiled
def _turn(stack, start, turned, top, bottom):  # type: ignore[no-untyped-def]
    """Columns start.. of a tile with rows side by side, [columns, rows]."""
    width = len(turned)
    for left in range(0, width, 16):
        for low in range(top, bottom, 16):
            for column in range(left, min(left + 16, width)):
                panel, offset = (start + column) // PANEL, (start + column) % PANEL
                for row in range(low, min(low + 16, bottom)):
                    turned[column, row] = stack[panel, row, offset]


@compiled
def _turn_back(weights, start, stack, top, rows):  # type: ignore[no-untyped-def]
    width = len(weights)
    for left in range(0, width, 16):
        for low in range(0, rows, 16):
            for column in range(left, min(left + 16, width)):
                panel, offset = (start + column) // PANEL, (start + column) % PANEL
                for row in range(low, min(low + 16, rows)):
                    stack[panel, top + row, offset] = weights[column, row]


@compiled
def _first_digits(stack, start, columns, diagonal, no_input, keys, bounds, section, histogram):  # type: ignore[no-untyped-def]
    """Write the keys of w^2 / U_jj^2 and count their first digits; 0 is an input without use."""
    score = np.empty(TILE, dtype=np.float32)
    bits = score.view(np.uint32)
    for tile in range(len(section)):
        top, bottom = bounds[tile, 0], bounds[tile, 1]
        counted = histogram[section[tile]]
        _turn(stack, start, columns, top, bottom)
        for column in range(len(columns)):
            weight = columns[column, top:bottom]
            key = keys[column, top:bottom]
            scale = diagonal[column]
            for row in range(bottom - top):
                quotient = weight[row] / scale
                score[row] = quotient * quotient
            if no_input[column]:
                key[:] = 0
            else:
                for row in range(bottom - top):
                    key[row] = bits[row] + np.uint32(1)
            for row in range(bottom - top):
                counted[key[row] >> np.uint32(FIRST)] += 1


@compiled
def _later_digits(width, keys, prefix, shift, above, bounds, section, histogram):  # type: ignore[no-untyped-def]
    """Count the next digit of the keys that begin with the section's prefix."""
    low, high = np.uint32(shift), np.uint32(above)
    kept = np.uint32((1 << (above - shift)) - 1)
    for tile in range(len(section)):
        top, bottom = bounds[tile, 0], bounds[tile, 1]
        counted = histogram[section[tile]]
        wanted = prefix[section[tile]]
        for column in range(width):
            key = keys[column, top:bottom]
            for row in range(bottom - top):
                if key[row] >> high == wanted:
                    counted[(key[row] >> low) & kept] += 1


@compiled
def _demote(keys, width, top, bottom, wanted, allowed):  # type: ignore[no-untyped-def]
    """Of equal keys the first `allowed` in row-major order stay; the others count as larger."""
    for row in range(top, bottom):
        for column in range(width):
            if keys[column, row] == wanted:
                if allowed > 0:
                    allowed -= 1
                else:
                    keys[column, row] = wanted + np.uint32(1)


@compiled
def _columns(  # type: ignore[no-untyped-def]
    stack,
    start,
    columns,
    upper,
    diagonal,
    no_input,
    keys,
    limits,
    counts,
    group,
    bounds,
    section,
    right,
    first_panel,
):
    """The column loop: prune column by column, spread the error to those on the right.

    Every weight is changed by the columns on its left in their order, as in the eager path; the
    columns are taken eight (m) at a time so that a weight is loaded once for four changes.
    """
    width = len(columns)
    step = group if group else 8
    weights = np.empty((width, TILE), dtype=np.float32)
    error = np.empty((width, TILE), dtype=np.float32)
    pruned = np.empty((step, TILE), dtype=np.bool_)
    index = np.empty((TILE, width), dtype=np.uint16)
    value = np.empty((TILE, width), dtype=np.float32)
    zero = np.float32(0.0)
    for tile in range(len(section)):
        top, bottom = bounds[tile, 0], bounds[tile, 1]
        rows = bottom - top
        limit, count = limits[section[tile]], counts[section[tile]]
        for column in range(width):
            weights[column, :rows] = columns[column, top:bottom]
        for first in range(0, width, step):
            last = min(first + step, width)
            if group:
                _group_mask(weights, diagonal, no_input, first, last, rows, count, pruned)
            else:
                for column in range(first, last):
                    key = keys[column, top:bottom]
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
        _turn_back(weights, start, stack, top, rows)
        _spread_past(error, rows, index, value, stack, top, right, first_panel)


@compiled
def _spread_past(error, rows, index, value, stack, top, factors, first_panel):  # type: ignore[no-untyped-def]
    """Spread a tile's errors past the block, panel by panel; those that are zero are left out."""
    found = np.zeros(rows, dtype=np.int64)
    for row in range(rows):
        count = 0
        for column in range(len(error)):
            index[row, count] = column
            value[row, count] = error[column, row]
            count += error[column, row] != np.float32(0.0)
        found[row] = count
    for panel in range(len(factors)):
        weights = stack[first_panel + panel]
        for row in range(rows):
            spread_row(
                factors[panel].ctypes,
                index[row].ctypes,
                value[row].ctypes,
                found[row],
                weights[top + row].ctypes,
                PANEL,
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
