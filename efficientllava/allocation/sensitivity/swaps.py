"""A search from a policy that is good already: a few budget-neutral swaps.

EvoPress (arXiv 2410.14649) moves one to three pairs of matrices of equal size, one a level up, one
a level down. Here pairs are drawn with a bias to those that the costs call cheap, every generation
has fresh tokens that all its policies share, and the best child replaces its parent only where
their paired difference exceeds its standard error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, gcd, isfinite
from random import Random

import numpy as np

from efficientllava.allocation.sensitivity.choice import Policy

MOST_SWAPS = 3
ATTEMPTS = 50


@dataclass(frozen=True)
class Swaps:
    """Draws children of a policy.

    Attributes:
        costs: [K, L], of which differences between neighbouring levels bias the draw.
        units: [K][L] zeros of every matrix at every level, in a common unit.
    """

    costs: np.ndarray
    units: Sequence[Sequence[int]]

    @classmethod
    def of(cls, costs: np.ndarray, levels: Sequence[float], sizes: Sequence[int]) -> Swaps:
        """With whole units of zeros, from levels of at most four decimals."""
        zeros = [[size * round(level * 10_000) for level in levels] for size in sizes]
        unit = gcd(*(each for row in zeros for each in row)) or 1
        return cls(costs, [[each // unit for each in row] for row in zeros])

    def children(self, parent: Policy, count: int, seed: str) -> list[Policy]:
        """Up to `count` different children; each one's random numbers are its own."""
        found: dict[Policy, None] = {}
        for index in range(count):
            draw = Random(f"{seed}/{index}")
            for _ in range(ATTEMPTS):
                child = parent
                for _ in range(draw.randint(1, MOST_SWAPS)):
                    child = self._swapped(child, draw)
                if child != parent and child not in found:
                    found[child] = None
                    break
        return list(found)

    def _swapped(self, policy: Policy, draw: Random) -> Policy:
        """One matrix up by a level and another down, so that the zeros stay the same."""
        up = self._moves(policy, 1)
        if not up:
            return policy
        raised = draw.choices([index for index, _, _ in up], _weights([cost for *_, cost in up]))[0]
        gained = next(units for index, units, _ in up if index == raised)
        down = [
            (index, cost)
            for index, units, cost in self._moves(policy, -1)
            if index != raised and units == -gained
        ]
        if not down:
            return policy
        lowered = draw.choices([i for i, _ in down], _weights([cost for _, cost in down]))[0]
        changed = list(policy)
        changed[raised] += 1
        changed[lowered] -= 1
        return tuple(changed)

    def _moves(self, policy: Policy, step: int) -> list[tuple[int, int, float]]:
        """(matrix, units of zeros, cost) of every move of one level."""
        moves = []
        for index, level in enumerate(policy):
            if 0 <= level + step < len(self.units[index]):
                cost = float(self.costs[index][level + step] - self.costs[index][level])
                if isfinite(cost):
                    units = self.units[index][level + step] - self.units[index][level]
                    moves.append((index, units, cost))
        return moves


def _weights(costs: Sequence[float]) -> list[float]:
    """The cheaper a move, the likelier: softmax of minus the cost in units of the spread."""
    spread = float(np.std(costs)) or 1.0
    least = min(costs)
    return [exp(-(cost - least) / spread) for cost in costs]
