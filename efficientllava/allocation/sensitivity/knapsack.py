"""The policy of least cost with exactly the budget: a dynamic programme over units of zeros."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, gcd

import numpy as np

from efficientllava.errors import UserError

PARTS = 10_000
"""Levels are whole ten-thousandths, so that budgets are whole numbers."""
MOST_CELLS = 2**31
"""Bytes of the table of choices: matrices x (units of the budget + 1)."""


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
    target = max(least, 0)
    # a table up to the target is the smallest, and mostly enough
    for bound in (target, most) if target <= most else ():
        if (found := _solve(costs, units, target, bound)) is not None:
            return found
    raise UserError(
        f"no policy with levels {list(levels)} has a mean ratio in [{lowest:g}, {highest:g}]",
        where="sensitivity.reach and sensitivity.step (for n:m obs.patterns)",
        remedy="let levels reach both sides of the ratio, or widen search.band",
    )


def _solve(costs: np.ndarray, units: np.ndarray, target: int, bound: int) -> list[int] | None:
    """The best policy whose units add up to the least reachable number in [target, bound]."""
    count, levels = costs.shape
    if count * (bound + 1) > MOST_CELLS:
        raise UserError(
            f"the budget has {bound + 1:,} units for {count} matrices, more than can be tabulated",
            where="sizes of the matrices",
            remedy="use levels with a larger common step (sensitivity.step)",
        )
    best = np.full(bound + 1, np.inf)
    best[0] = 0.0
    choices = np.zeros((count, bound + 1), dtype=np.int8 if levels <= 127 else np.int32)
    for matrix in range(count):
        sums = np.full(bound + 1, np.inf)
        for level in range(levels):
            taken, cost = int(units[matrix, level]), costs[matrix, level]
            if taken > bound or np.isinf(cost):
                continue
            through = best[: bound + 1 - taken] + cost
            better = through < sums[taken:]
            sums[taken:][better] = through[better]
            choices[matrix, taken:][better] = level
        best = sums
    reached = np.flatnonzero(np.isfinite(best[target:]))
    if not len(reached):
        return None
    left, policy = target + int(reached[0]), [0] * count
    for matrix in reversed(range(count)):
        policy[matrix] = int(choices[matrix, left])
        left -= int(units[matrix, policy[matrix]])
    return policy


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
