"""The rows that OBS prunes: sections with masks of their own, bundles of them, batches, tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate, groupby

import numpy as np
import torch

from efficientllava.kernels.cpu.arguments import TileRows
from efficientllava.kernels.cpu.error_lists import TILE
from efficientllava.kernels.cpu.vector_kernel import MEMBERS

ROWS = 8192
"""Rows that are pruned together: enough for all threads, few enough to use little new memory."""
COST = {1: 1.35, 2: 1.1, 3: 1.0}
"""Time of a row's product with U when so many rows share a list of columns (measured ratios)."""


@dataclass(frozen=True)
class Section:
    """One matrix at one level; its mask is chosen within.

    Attributes:
        weight: [rows, columns] float32, contiguous.
        quotas: pruned weights in each block of columns (unstructured).
        count: zeros in a group of columns (n:m).
        density: the share of its weights that is pruned.
    """

    weight: torch.Tensor
    quotas: Sequence[int]
    count: int
    density: float


def bundles_of(sections: Sequence[Section], most: int = MEMBERS) -> list[list[int]]:
    """Sections whose rows are summed together: levels of one matrix that are next to each other.

    A row's list of columns is then that of its densest level, which costs products with zero and
    saves reading U; `COST` decides how many share a list. It changes no result.

    Args:
        sections: those of a matrix one after the other.
        most: sections in a bundle.

    Returns:
        Indices into `sections`.
    """
    bundles = []
    for _, of_matrix in groupby(range(len(sections)), lambda index: id(sections[index].weight)):
        order = sorted(of_matrix, key=lambda index: sections[index].density)
        densities = [sections[index].density for index in order]
        start = 0
        for size in _sizes(tuple(densities), most)[1]:
            bundles.append(order[start : start + size])
            start += size
    return bundles


@cache
def _sizes(densities: tuple[float, ...], most: int) -> tuple[float, list[int]]:
    """The cheapest way to cut levels into bundles, and its cost."""
    if not densities:
        return 0.0, []
    ways = []
    for size in range(1, min(most, len(densities)) + 1):
        cost, rest = _sizes(densities[size:], most)
        ways.append((size * COST[size] * densities[size - 1] + cost, [size, *rest]))
    return min(ways)


def batches_of(bundles: Sequence[list[Section]]) -> Iterator[list[list[Section]]]:
    """Bundles that are pruned together, in their order."""
    batch: list[list[Section]] = []
    for bundle in bundles:
        batch.append(bundle)
        if sum(len(section.weight) for bundle in batch for section in bundle) >= ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


@dataclass
class Tiles:
    """The rows of a batch, cut into tiles: the same rows of all sections of a bundle.

    Attributes:
        sections: of the batch.
        rows: bounds of the sections.
        bounds: [tiles, 2], first row and the row after the last, of the bundle's first section.
        section: [tiles], that first section.
        members: [tiles], sections in the bundle.
        gaps: [tiles], rows from one of its sections to the next.
    """

    bundles: Sequence[Sequence[Section]]
    sections: list[Section] = field(init=False)
    rows: list[int] = field(init=False)
    bounds: np.ndarray = field(init=False)
    section: np.ndarray = field(init=False)
    members: np.ndarray = field(init=False)
    gaps: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.sections = [section for bundle in self.bundles for section in bundle]
        self.rows = [0, *accumulate(len(section.weight) for section in self.sections)]
        cut, first = [], 0
        for bundle in self.bundles:
            height, start = len(bundle[0].weight), self.rows[first]
            cut += [
                (start + top, start + min(top + TILE, height), first, len(bundle), height)
                for top in range(0, height, TILE)
            ]
            first += len(bundle)
        table = np.array(cut, dtype=np.int64).reshape(-1, 5).T.copy()
        self.bounds = np.ascontiguousarray(table[:2].T)
        self.section, self.members, self.gaps = table[2:]

    @property
    def arrays(self) -> TileRows:
        """The rows of the tiles, for the compiled loops."""
        return TileRows(self.bounds, self.section, self.members, self.gaps)
