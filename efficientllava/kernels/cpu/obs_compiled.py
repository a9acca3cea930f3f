"""The column loop of OBS on a CPU, compiled: masks, the inside of a block, errors to the right.

It computes the eager path of `obs`, in the same order of additions. Strips of rows go through a
block of columns within the first-level cache, rows side by side, so that a vector register holds
one column of many rows; their errors are then listed and spread to the columns on the right, which
lie in panels of 64 so that memory is read in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import numpy as np
import torch

from efficientllava.kernels.cpu.arguments import Block, Choice, Digit, Lists, Scored
from efficientllava.kernels.cpu.column_loop import into_panels, prune_columns
from efficientllava.kernels.cpu.error_lists import TILE, spread_blocks
from efficientllava.kernels.cpu.radix_select import (
    ALL_BITS,
    FIRST,
    SECOND,
    THIRD,
    demote,
    first_digits,
    later_digits,
)
from efficientllava.kernels.cpu.sections import Section, Tiles, batches_of, bundles_of
from efficientllava.kernels.cpu.vector_kernel import LANES, PANEL

AHEAD = 512
"""Columns that are pruned before their errors are spread to all on the right."""
SHARES = 4
"""Parts of the tiles that a thread takes one after the other, on average."""


def prune_sections(
    sections: Sequence[Section],
    upper: torch.Tensor,
    dead: torch.Tensor,
    starts: Sequence[int],
    group_size: int | None,
    threads: int,
) -> list[torch.Tensor]:
    """Prune sections that share a factor: see `obs.prune_levels`.

    Args:
        upper, dead: of the factor.
        starts: bounds of the blocks of columns.
        group_size: m of an n:m pattern.
        threads: how many work; changes no result.

    Returns:
        The solution of each section [rows, columns].
    """
    bundles = bundles_of(sections)
    batches = batches_of([[sections[index] for index in bundle] for bundle in bundles])
    loop = _ColumnLoop(
        upper, dead, starts, group_size, [Tiles(batch) for batch in batches], threads
    )
    try:
        solutions = [solution for tiles in loop.batches for solution in loop.prune(tiles)]
    finally:
        loop.close()
    order = [index for bundle in bundles for index in bundle]
    by_section = dict(zip(order, solutions, strict=True))
    return [by_section[index] for index in range(len(sections))]


def _vectors(*shape: int) -> np.ndarray:
    """Uninitialised float32 that start where a vector may start.

    From numpy, which asks the system for huge pages: the first use of new memory costs half.
    """
    size = int(np.prod(shape))
    memory = np.empty(size + PANEL, dtype=np.float32)
    skipped = -(memory.ctypes.data // memory.itemsize) % PANEL
    return memory[skipped : skipped + size].reshape(shape)


class _ColumnLoop:
    """The column loop, block of columns by block from left to right.

    Errors go at once to the columns of the next few blocks, and past those when the last of these
    blocks is done, so that most of the stack is read and written once for `AHEAD` columns. Every
    block's errors are summed and subtracted by themselves: the order of additions is as if each
    were spread at once.
    """

    def __init__(
        self,
        upper: torch.Tensor,
        dead: torch.Tensor,
        starts: Sequence[int],
        group_size: int | None,
        batches: Sequence[Tiles],
        threads: int,
    ) -> None:
        self.upper, self.dead, self.starts = upper, dead.numpy(), starts
        self.group_size, self.threads = group_size, threads
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None
        columns, width = len(upper), max(end - start for start, end in pairwise(starts))
        self.together = max(AHEAD // width, 1)
        self.batches = batches
        # used again for each batch of sections
        rows = max(batch.rows[-1] for batch in batches)
        tiles = max(len(batch.section) for batch in batches)
        self.stack = _vectors(-(-columns // PANEL), rows, PANEL)
        self.keys = np.empty((rows, width), dtype=np.uint32)
        members = max(batch.members.max() for batch in batches)
        entries = TILE * -(-width // LANES) * LANES + LANES
        self.lists = Lists(
            np.empty((self.together, tiles, entries), dtype=np.uint16),
            np.empty((self.together, tiles, members, entries), dtype=np.float32),
            np.zeros((self.together, tiles, TILE + 1), dtype=np.int64),
        )

    def close(self) -> None:
        """Let the threads go."""
        if self.pool is not None:
            self.pool.shutdown()

    def prune(self, tiles: Tiles) -> list[torch.Tensor]:
        """The solutions of a batch of sections, views of one tensor."""
        self.tiles = tiles
        sources = [section.weight.numpy() for section in tiles.sections]

        def fill(thread: int, first: int, last: int) -> None:
            for tile in range(first, last):
                top, bottom = tiles.bounds[tile]
                for member in range(tiles.members[tile]):
                    section, offset = tiles.section[tile] + member, member * tiles.gaps[tile]
                    start = tiles.rows[section] - offset
                    source = sources[section][top - start : bottom - start]
                    into_panels(source, self.stack[:, top + offset : bottom + offset])

        self._run(fill)
        self.solution = _vectors(tiles.rows[-1], len(self.upper))
        for number in range(len(self.starts) - 1):
            self._prune_block(number)
        solution = torch.from_numpy(self.solution)
        return [solution[top:bottom] for top, bottom in pairwise(tiles.rows)]

    def _run(self, work: Callable[[int, int, int], None]) -> None:
        """Call work(thread, first tile, last tile) until all tiles are done.

        A thread takes the next few tiles when it is free: one that is held up delays no other.
        """
        tiles = len(self.tiles.section)
        if self.pool is None:
            work(0, 0, tiles)
            return
        step = max(tiles // (self.threads * SHARES), 1)
        starts = iter(range(0, tiles, step))

        def serve(thread: int) -> None:
            for first in starts:
                work(thread, first, min(first + step, tiles))

        list(self.pool.map(serve, range(self.threads)))

    def _prune_block(self, number: int) -> None:
        """Choose the masks of a block of columns, prune them, spread the errors to the right."""
        start, end = self.starts[number], self.starts[number + 1]
        first_block = number // self.together * self.together
        last_block = min(first_block + self.together, len(self.starts) - 1)
        ahead = self.starts[last_block]
        inner = np.ascontiguousarray(self.upper[start:end, start:end].T.numpy())
        diagonal = np.ascontiguousarray(inner.diagonal())
        no_input = np.ascontiguousarray(self.dead[start:end])
        quotas = [section.quotas[number] for section in self.tiles.sections]
        limits = self._limits(start, diagonal, no_input, quotas)
        counts = np.array([section.count for section in self.tiles.sections], dtype=np.int64)
        right = self._factors(start, end, end, ahead)
        block = Block(start, inner, diagonal, no_input, right, end // PANEL)
        choice = Choice(self.keys, limits, counts, self.group_size or 0)
        lists = Lists(*(array[number - first_block] for array in self.lists))
        tiles = self.tiles.arrays

        def work(thread: int, first: int, last: int) -> None:
            prune_columns(self.stack, self.solution, block, choice, lists, tiles, first, last)

        self._run(work)
        if end == ahead < len(self.upper):
            self._spread(first_block, last_block)

    def _spread(self, first_block: int, last_block: int) -> None:
        """Spread the errors of blocks past the last of them."""
        end, columns = self.starts[last_block], len(self.upper)
        blocks = pairwise(self.starts[first_block : last_block + 1])
        factors = np.stack([self._factors(*block, end, columns) for block in blocks])

        def work(thread: int, first: int, last: int) -> None:
            spread_blocks(
                self.stack, factors, end // PANEL, self.lists, self.tiles.arrays, first, last
            )

        self._run(work)

    def _factors(self, start: int, end: int, left: int, right: int) -> np.ndarray:
        """U of a block's rows start..end and of columns left..right, [panels, end - start, 64].

        Columns of the first and last panel that are not among them get zeros.
        """
        offset = left // PANEL * PANEL
        panels = -(-right // PANEL) - left // PANEL if right > left else 0
        wide = torch.zeros(end - start, panels * PANEL)
        wide[:, left - offset : right - offset] = self.upper[start:end, left:right]
        return wide.view(end - start, panels, PANEL).transpose(0, 1).contiguous().numpy()

    def _limits(
        self,
        start: int,
        diagonal: np.ndarray,
        no_input: np.ndarray,
        quotas: Sequence[int],
    ) -> np.ndarray:
        """Per section, the key below which exactly its quota of weights lies (radix selection)."""
        sections, width = len(quotas), len(diagonal)
        if self.group_size is not None:
            return np.zeros(sections, dtype=np.uint32)  # masks are chosen within groups
        tiles, rest = self.tiles, np.array(quotas, dtype=np.int64)
        prefix = np.zeros(sections, dtype=np.uint32)
        for shift, above in ((FIRST, 32), (SECOND, FIRST), (THIRD, SECOND)):
            bins = 1 << (min(above, 31) - shift)
            histograms = np.zeros((self.threads, sections, bins), dtype=np.int64)
            if above == 32:
                live = np.where(no_input, 0, ALL_BITS).astype(np.uint32)
                digits = partial(first_digits, self.stack, Scored(start, diagonal, live), self.keys)
            else:
                digits = partial(later_digits, width, self.keys, Digit(prefix, shift, above))

            def work(
                thread: int,
                first: int,
                last: int,
                digits: Callable[..., None] = digits,
                into: np.ndarray = histograms,
            ) -> None:
                digits(tiles.arrays, first, last, into[thread])

            self._run(work)
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
                        top, bottom = tiles.rows[index], tiles.rows[index + 1]
                        demote(self.keys, width, top, bottom, prefix[index], rest[index])
        return np.where(np.array(quotas) > 0, prefix + np.uint32(1), np.uint32(0))
