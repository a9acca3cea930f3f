"""The inside of a block of columns on a CPU, compiled: masks and the column loop of OBS.

Bit for bit what the eager path of `obs` computes. The stack lies with its rows side by side
([columns, rows]), so that a vector register holds one column of many rows; a tile of rows goes
through a block of columns without leaving the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import torch

TILE = 256
"""Rows of a tile: two tiles of 128 columns are 256 KiB, within a core's second-level cache."""
FIRST, SECOND, THIRD = 19, 9, 0
"""Bits below each digit of a key: 12, 10 and 9 bits wide; a score's sign is always 0."""
EVERYTHING = 0xFFFFFFFF

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

    def close(self) -> None:
        """Let the threads go."""
        if self._pool is not None:
            self._pool.shutdown()


def _uninitialised(*shape: int) -> torch.Tensor:
    """A float32 tensor from numpy, which asks for huge pages: first use costs a third."""
    return torch.from_numpy(np.empty(shape, dtype=np.float32))


def stacked(weights: Sequence[torch.Tensor], repetitions: int, tiles: Tiles) -> torch.Tensor:
    """Every matrix [rows_i, columns] `repetitions` times, rows side by side: [columns, rows]."""
    stack = _uninitialised(weights[0].shape[1], tiles.rows[-1])
    target = stack.numpy()
    sources = [weight.float().contiguous().numpy() for weight in weights]

    def fill(thread: int, first: int, last: int) -> None:
        for (top, bottom), section in zip(
            tiles.bounds[first:last], tiles.section[first:last], strict=True
        ):
            source = sources[section // repetitions]
            offset = tiles.rows[section]
            _transpose(source[top - offset : bottom - offset], target[:, top:bottom])

    tiles.run(fill)
    return stack


def unstacked(stack: torch.Tensor, tiles: Tiles) -> list[torch.Tensor]:
    """The sections of a stack [columns, rows], each [rows_i, columns]."""
    heights = [end - start for start, end in pairwise(tiles.rows)]
    solutions = [_uninitialised(height, len(stack)) for height in heights]
    source = stack.numpy()

    def fill(thread: int, first: int, last: int) -> None:
        for (top, bottom), section in zip(
            tiles.bounds[first:last], tiles.section[first:last], strict=True
        ):
            offset = tiles.rows[section]
            into = solutions[section].numpy()[top - offset : bottom - offset]
            _transpose(source[:, top:bottom], into)

    tiles.run(fill)
    return solutions


class Block:
    """Scratch memory of the column loop, for blocks of at most `width` columns.

    Args:
        stack: [columns, rows] float32, changed in place.
        tiles: the same rows.
        group_size: m of an n:m pattern, with `counts` zeros per group in each section.
    """

    def __init__(
        self,
        stack: torch.Tensor,
        tiles: Tiles,
        width: int,
        group_size: int | None,
        counts: Sequence[int],
    ) -> None:
        self.stack, self.tiles, self.group_size = stack.numpy(), tiles, group_size
        self.keys = np.empty((width, stack.shape[1]), dtype=np.uint32)
        self.errors = _uninitialised(width, stack.shape[1])
        self.counts = np.array(counts, dtype=np.int64)

    def prune(
        self, start: int, end: int, upper: torch.Tensor, dead: torch.Tensor, quotas: Sequence[int]
    ) -> torch.Tensor:
        """Choose the masks of columns start..end and run the column loop inside them.

        Args:
            upper: U [columns, columns].
            dead: [columns], inputs that were always zero.
            quotas: pruned weights of each section in these columns (unstructured).

        Returns:
            The errors [end - start, rows] that are to be spread past the block.
        """
        inner = np.ascontiguousarray(upper[start:end, start:end].numpy())
        diagonal = np.ascontiguousarray(inner.diagonal())
        no_input = np.ascontiguousarray(dead[start:end].numpy())
        columns = self.stack[start:end]
        errors = self.errors[: end - start]
        limits = np.zeros(len(self.tiles.rows) - 1, dtype=np.uint32)
        if self.group_size is None:
            limits = self._limits(columns, diagonal, no_input, quotas)

        def work(thread: int, first: int, last: int) -> None:
            _columns(
                columns,
                inner,
                diagonal,
                no_input,
                self.keys,
                limits,
                self.counts,
                self.group_size or 0,
                self.tiles.bounds[first:last],
                self.tiles.section[first:last],
                errors.numpy(),
            )

        self.tiles.run(work)
        return errors

    def _limits(
        self,
        columns: np.ndarray,
        diagonal: np.ndarray,
        no_input: np.ndarray,
        quotas: Sequence[int],
    ) -> np.ndarray:
        """Per section, the key below which exactly its quota of weights lies (radix selection)."""
        sections = len(quotas)
        rest = np.array(quotas, dtype=np.int64)
        prefix = np.zeros(sections, dtype=np.uint32)
        for shift, above in ((FIRST, 32), (SECOND, FIRST), (THIRD, SECOND)):
            bins = 1 << (min(above, 31) - shift)
            histograms = np.zeros((self.tiles.threads, sections, bins), dtype=np.int64)
            if above == 32:
                digits = partial(_first_digits, columns, diagonal, no_input, self.keys)
            else:
                digits = partial(_later_digits, len(columns), self.keys, prefix, shift, above)

            def work(
                thread: int,
                first: int,
                last: int,
                digits: Callable[..., None] = digits,
                into: np.ndarray = histograms,
            ) -> None:
                digits(
                    self.tiles.bounds[first:last], self.tiles.section[first:last], into[thread]
                )

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
                        _demote(self.keys, len(columns), top, bottom, prefix[index], rest[index])
        return np.where(np.array(quotas) > 0, prefix + np.uint32(1), np.uint32(0))


@compiled
def _transpose(source, target):  # type: ignore[no-untyped-def]
    rows, columns = source.shape
    for top in range(0, rows, 16):
        for left in range(0, columns, 16):
            for column in range(left, min(left + 16, columns)):
                for row in range(top, min(top + 16, rows)):
                    target[column, row] = source[row, column]


@compiled
def _first_digits(columns, diagonal, no_input, keys, bounds, section, histogram):  # type: ignore[no-untyped-def]
    """Write the keys of w^2 / U_jj^2 and count their first digits; 0 is an input without use."""
    score = np.empty(TILE, dtype=np.float32)
    bits = score.view(np.uint32)
    for tile in range(len(section)):
        top, bottom = bounds[tile, 0], bounds[tile, 1]
        counted = histogram[section[tile]]
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
    columns, upper, diagonal, no_input, keys, limits, counts, group, bounds, section, errors
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
                for right in range(column + 1, last):
                    _spread(weights[right], lost, upper[column, right], rows)
            for right in range(last, width):
                weight = weights[right]
                done = first
                while done + 4 <= last:
                    _spread_four(weight, error, upper[:, right], done, rows)
                    done += 4
                while done < last:
                    _spread(weight, error[done], upper[done, right], rows)
                    done += 1
        for column in range(width):
            columns[column, top:bottom] = weights[column, :rows]
            errors[column, top:bottom] = error[column, :rows]


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
