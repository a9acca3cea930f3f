"""EvoPress (arXiv 2410.14649) on the same database, for comparison: its moves, its selection.

Start: uniform. A child makes min of two draws from 1..3 swaps: two matrices of equal size, one a
level up, one a level down. Children are scored in steps on more and more tokens, fewer left after
each; the parent takes part in the last step. Tokens are drawn anew for each generation.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CHILDREN = 16
STEPS = ((4, 1), (1, 4))
"""(children left, segments) of the published three steps' shape, at 16 children; the first step
scores all of them on one segment."""


@dataclass
class EvoPress:
    """A search that ends when its tokens are spent.

    Attributes:
        score: mean KL of a policy on chosen segments.
        groups: indices of matrices of equal size.
        levels: how many there are.
        segments, length: of the pool that tokens are drawn from.
    """

    score: Any
    groups: Sequence[Sequence[int]]
    levels: int
    segments: int
    length: int
    used: int = 0

    def run(self, start: tuple[int, ...], tokens: int, seed: int) -> tuple[int, ...]:
        """The best policy when `tokens` have passed through the model."""
        draw, parent = random.Random(seed), start
        first, (kept, _), (_, last) = 1, *STEPS
        generation = self.length * (CHILDREN * first + kept * 2 + (1 + 1) * last)
        while self.used + generation <= tokens:
            children = [self._child(parent, draw) for _ in range(CHILDREN)]
            children = self._best(children, draw, first, kept)
            (child,) = self._best(children, draw, 2, 1)
            (parent,) = self._best([parent, child], draw, last, 1)
        return parent

    def _best(
        self, policies: Sequence[tuple[int, ...]], draw: random.Random, segments: int, count: int
    ) -> list[tuple[int, ...]]:
        chosen = draw.sample(range(self.segments), min(segments, self.segments))
        losses = [self.score(policy, chosen) for policy in policies]
        self.used += self.length * len(chosen) * len(policies)
        order = sorted(range(len(policies)), key=lambda index: (losses[index], index))
        return [policies[index] for index in order[:count]]

    def _child(self, parent: tuple[int, ...], draw: random.Random) -> tuple[int, ...]:
        child = list(parent)
        for _ in range(min(draw.randint(1, 3), draw.randint(1, 3))):
            weights = [len(group) for group in self.groups]
            for _ in range(100):
                group = draw.choices(self.groups, weights)[0]
                if len(group) < 2:
                    continue
                up, down = draw.sample(list(group), 2)
                if child[up] + 1 < self.levels and child[down] > 0:
                    child[up] += 1
                    child[down] -= 1
                    break
        return tuple(child)
