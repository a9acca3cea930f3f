"""The rows that OBS prunes: sections with masks of their own, batches, tiles for a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import numpy as np
import torch

from efficientllava.pruning.column_loop import TILE

ROWS = 8192
"""Rows that are pruned together: enough for all threads, few enough to use little new memory."""


@dataclass(frozen=True)
class Section:
    """One matrix at one level; its mask is chosen within.

    Attributes:
        weight: [rows, columns] float32, contiguous.
        quotas: pruned weights in each block of columns (unstructured).
        count: zeros in a group of columns (n:m).
    """

    weight: torch.Tensor
    quotas: Sequence[int]
    count: int


def batches_of(sections: Sequence[Section]) -> Iterator[list[Section]]:
    """Sections that are pruned together, in their order."""
    batch: list[Section] = []
    for section in sections:
        batch.append(section)
        if sum(len(each.weight) for each in batch) >= ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


@dataclass
class Tiles:
    """The rows of some sections, cut into tiles that do not cross from one to the next.

    Attributes:
        rows: bounds of the sections.
        bounds: [tiles, 2], first row and the row after the last.
        section: [tiles], to which a tile belongs.
    """

    sections: Sequence[Section]
    rows: list[int] = field(init=False)
    bounds: np.ndarray = field(init=False)
    section: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.rows = [0, *accumulate(len(section.weight) for section in self.sections)]
        cut = [
            (top, min(top + TILE, end), index)
            for index, (start, end) in enumerate(pairwise(self.rows))
            for top in range(start, end, TILE)
        ]
        self.bounds = np.array([[top, bottom] for top, bottom, _ in cut], dtype=np.int64)
        self.section = np.array([index for _, _, index in cut], dtype=np.int64)

    def of_section(self, section: int) -> tuple[int, int]:
        """First tile of a section and the tile after its last."""
        first, last = np.searchsorted(self.section, (section, section + 1)).tolist()
        return first, last
