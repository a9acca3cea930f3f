"""The policy of least cost with exactly the budget: a dynamic programme over units of zeros.

Thousands of matrices (experts) would make its table too large. Most levels of most matrices cannot
be in the best policy, as the Lagrangian relaxation proves: what is left makes a small one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import ceil, floor, gcd
from operator import or_

import numpy as np

from efficientllava.errors import UserError

PARTS = 10_000
"""Levels are whole ten-thousandths, so that budgets are whole numbers."""
MOST_CELLS, MOST_BITS = 2**31, 2**36
"""Of the table of choices, in bytes, and of all budgets that are tried: matrices x units."""
FREE = 64
"""Levels beside the relaxation's own with which the first table is made."""


def knapsack(
    costs: np.ndarray, levels: Sequence[float], sizes: Sequence[int], lowest: float, highest: float
) -> list[int]:
    """The level of every matrix such that the summed cost is least.

    The mean ratio, weighted by size, is exactly `lowest` where some policy meets that, and
    otherwise the least above it that some policy meets. Budgets are counted in the greatest common
    divisor of all steps (size x difference of levels): what is found is the exact optimum.

    Args:
        costs: [K, L] of every matrix at every level, any sign; inf where it may not be.
        levels: [L] ratios, ascending, of at most four decimals.
        sizes: [K] weights of every matrix.
        lowest, highest: bounds of the mean ratio.

    Returns:
        [K] indices of levels; of equal sums the one with the lower level at later matrices.

    Raises:
        UserError: no policy has a mean ratio within the bounds.
        ValueError: a cost is NaN.
    """
    if np.isnan(costs).any():
        raise ValueError("a cost is NaN")
    steps = [round(level * PARTS) for level in levels]
    offsets = [[size * (step - steps[0]) for step in steps] for size in sizes]
    unit = gcd(*(offset for row in offsets for offset in row)) or 1
    units = np.array(offsets, dtype=np.int64) // unit
    total, base = sum(sizes), sum(sizes) * steps[0]
    # bounds carry the rounding of floats; levels do not
    least = ceil(round((lowest * PARTS * total - base) / unit, 6))
    most = min(floor(round((highest * PARTS * total - base) / unit, 6)), int(units[:, -1].sum()))
    budget = _least_reachable(np.isfinite(costs), units, max(least, 0), most)
    if budget is None:
        raise UserError(
            f"no policy with levels {list(levels)} has a mean ratio in [{lowest:g}, {highest:g}]",
            where="sensitivity.reach and sensitivity.step (for n:m obs.patterns)",
            remedy="let levels reach both sides of the ratio, or widen search.band",
        )
    return _cheapest(costs, units, budget)


def _least_reachable(allowed: np.ndarray, units: np.ndarray, least: int, most: int) -> int | None:
    """The least sum of units in [least, most] that some policy of allowed levels has."""
    if most < least:
        return None
    _require_cells(len(units) * (most + 1), MOST_BITS)
    reached, within = 1, (1 << (most + 1)) - 1  # bit n: whether n units can be reached
    for row, able in zip(units, allowed, strict=True):
        reached = reduce(or_, (reached << int(taken) for taken in row[able]), 0) & within
    reached >>= least
    return least + (reached & -reached).bit_length() - 1 if reached else None


def _cheapest(costs: np.ndarray, units: np.ndarray, budget: int) -> list[int]:
    """The best policy with exactly the budget, which some policy has.

    Reduced costs, c + price * u less the least of the matrix, are not negative, and policies of
    the budget differ in their sum as in their costs. A policy whose sum is s is the best of all
    once no level with a reduced cost up to s is left out (Dembo and Hammer, 1980).
    """
    priced = costs + _price(costs, units, budget) * units
    reduced = priced - priced.min(axis=1, keepdims=True)
    ordered = np.sort(reduced[np.isfinite(reduced)])
    policy, free = None, FREE
    while policy is None:  # until the levels that are kept can meet the budget
        limit = ordered[: len(costs) + free][-1]
        kept = np.where(reduced <= limit, costs, np.inf)
        policy, free = _tabulated(kept, units, budget), 4 * free
    spent = reduced[np.arange(len(costs)), policy].sum()
    spent += 1e-9 * np.abs(kept[np.isfinite(kept)]).max()  # of rounding
    if limit < min(spent, ordered[-1]):
        policy = _tabulated(np.where(reduced <= spent, costs, np.inf), units, budget)
    assert policy is not None
    return policy


def _price(costs: np.ndarray, units: np.ndarray, budget: int) -> float:
    """Of a unit, where the cheapest levels of the matrices have the budget about: by bisection."""
    low, high = -1.0, 1.0

    def taken(price: float) -> int:
        return int(units[np.arange(len(units)), (costs + price * units).argmin(axis=1)].sum())

    while taken(low) < budget:
        low *= 2
    while taken(high) > budget:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if taken(middle) > budget else (low, middle)
    return high


def _tabulated(costs: np.ndarray, units: np.ndarray, budget: int) -> list[int] | None:
    """The best policy of finite cost with exactly the budget, if there is one."""
    allowed = np.isfinite(costs)
    # every matrix takes its least for certain: the table is of what is above
    floors = np.where(allowed, units, units.max()).min(axis=1)
    units, budget = units - floors[:, None], budget - int(floors.sum())
    if budget < 0:
        return None
    count, levels = costs.shape
    _require_cells(count * (budget + 1), MOST_CELLS)
    best = np.full(budget + 1, np.inf)
    best[0] = 0.0
    choices = np.zeros((count, budget + 1), dtype=np.int8 if levels <= 127 else np.int32)
    for matrix in range(count):
        sums = np.full(budget + 1, np.inf)
        for level in np.flatnonzero(allowed[matrix]):
            taken = int(units[matrix, level])
            if taken > budget:
                continue
            through = best[: budget + 1 - taken] + costs[matrix, level]
            better = through < sums[taken:]
            sums[taken:][better] = through[better]
            choices[matrix, taken:][better] = level
        best = sums
    if not np.isfinite(best[budget]):
        return None
    left, policy = budget, [0] * count
    for matrix in reversed(range(count)):
        policy[matrix] = int(choices[matrix, left])
        left -= int(units[matrix, policy[matrix]])
    return policy


def _require_cells(cells: int, most: int) -> None:
    if cells > most:
        raise UserError(
            f"the budget has too many units for its matrices: {cells:,} cells, of {most:,}",
            where="sizes of the matrices",
            remedy="use levels with a larger common step (sensitivity.step)",
        )


def nearest(
    ratios: Sequence[float],
    levels: Sequence[float],
    sizes: Sequence[int],
    lowest: float,
    highest: float,
) -> list[int]:
    """The policy on a grid of levels, with exactly the budget, that lies nearest to given ratios.

    Args:
        ratios: [K] of any value; the distance is the squared one, weighted by size.

    Raises:
        UserError: as `knapsack`.
    """
    apart = np.asarray(levels)[None, :] - np.asarray(ratios)[:, None]
    costs = np.square(apart) * np.asarray(sizes, dtype=np.float64)[:, None]
    return knapsack(costs, levels, sizes, lowest, highest)
