"""The cheap policies that a choice begins with, on the grid of levels with exactly the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from efficientllava.allocation.owl import outlier_shares, ratios_by_outliers
from efficientllava.allocation.sensitivity.choice import Policy
from efficientllava.allocation.sensitivity.knapsack import knapsack, nearest
from efficientllava.allocation.slope import linear_ratios
from efficientllava.data.proxy import ProxyData
from efficientllava.models.families import Adapter
from efficientllava.parameters import ObsParameters

SPREADS = (0.04, 0.08)
"""Of OWL; the published ones."""
SLOPES = (0.05, 0.1)
"""Of a line over the blocks: 0.05 was the best of a trial's grid."""


@dataclass(frozen=True)
class Budget:
    """What every policy must meet.

    Attributes:
        levels: ratios that a matrix may take, ascending.
        sizes: weights of every matrix.
        ratio, highest: bounds of the mean ratio; `ratio` exactly where the levels allow it.
    """

    levels: Sequence[float]
    sizes: Sequence[int]
    ratio: float
    highest: float

    def cheapest(self, costs: np.ndarray) -> Policy:
        """The policy of least summed cost."""
        return tuple(knapsack(costs, self.levels, self.sizes, self.ratio, self.highest))

    def nearest(self, ratios: Sequence[float]) -> Policy:
        """The policy nearest to given ratios of every matrix."""
        return tuple(nearest(ratios, self.levels, self.sizes, self.ratio, self.highest))

    def mean(self, policy: Policy) -> float:
        """The mean ratio, weighted by size."""
        zeros = (self.levels[i] * size for i, size in zip(policy, self.sizes, strict=True))
        return sum(zeros) / sum(self.sizes)


def simple_policies(
    adapter: Adapter,
    proxy: ProxyData,
    budget: Budget,
    obs: ObsParameters,
    threshold: float,
) -> list[tuple[str, Policy]]:
    """Uniform, lines over the blocks, and OWL at several spreads; for n:m patterns uniform alone.

    Args:
        adapter: of the dense model.
        proxy: what OWL's outliers are counted on.
        threshold: M of OWL.
    """
    proposals = [("uniform", budget.nearest([budget.ratio] * len(budget.sizes)))]
    if obs.groups:
        return proposals
    shares, sizes = outlier_shares(adapter, proxy, obs, threshold)
    by_block = [(f"slope {slope:g}", linear_ratios(sizes, budget.ratio, slope)) for slope in SLOPES]
    by_block += [
        (f"owl {spread:g}", ratios_by_outliers(shares, sizes, budget.ratio, spread))
        for spread in SPREADS
    ]
    for origin, ratios in by_block:
        proposals.append((origin, budget.nearest([ratios[m.block] for m in adapter.matrices])))
    return proposals
