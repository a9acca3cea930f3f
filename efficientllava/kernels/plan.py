"""How a stack of matrices is pruned: its sections, blocks of columns and numbers of zeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """How a stack is pruned.

    Attributes:
        rows: bounds of the sections, one matrix at one level each; its mask is chosen within.
        starts: bounds of the blocks of columns.
        quotas: [section][block], pruned weights.
        counts: [section], zeros in a group of `group_size` columns (0 when unstructured).
        group_size: m of an n:m pattern; None when unstructured.
    """

    rows: Sequence[int]
    starts: Sequence[int]
    quotas: Sequence[Sequence[int]]
    counts: Sequence[int]
    group_size: int | None
