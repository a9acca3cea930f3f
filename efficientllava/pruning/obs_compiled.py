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

import numpy as np
import torch

from efficientllava.pruning.column_loop import (
    FIRST,
    SECOND,
    THIRD,
    TILE,
    demote,
    first_digits,
    into_panels,
    later_digits,
    out_of_panels,
    prune_columns,
)
from efficientllava.pruning.vector_kernel import PANEL


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
            into_panels(source, target[:, top:bottom])

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
            out_of_panels(source[:, top:bottom], into)

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
            prune_columns(
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
                    first_digits, self.stack, start, turned, diagonal, no_input, self.keys
                )
            elif self.group_size is not None:
                break
            else:
                digits = partial(later_digits, width, self.keys, prefix, shift, above)

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
                        demote(self.keys, width, top, bottom, prefix[index], rest[index])
        return np.where(np.array(quotas) > 0, prefix + np.uint32(1), np.uint32(0))
