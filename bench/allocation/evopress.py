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

TOKENS = 100_000
"""The budget of a search, tokens that it scores: that of `efficientllava_plus` on SmolLM2."""
STEPS = ((16, 1), (4, 2), (2, 4))
"""(policies, segments each is scored on) of a generation's steps: all children; the best of them;
the best one and the parent."""


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
        (children, first), (kept, second), (_, last) = STEPS
        generation = self.length * sum(policies * segments for policies, segments in STEPS)
        while self.used + generation <= tokens:
            offspring = [self._child(parent, draw) for _ in range(children)]
            offspring = self._best(offspring, draw, first, kept)
            (child,) = self._best(offspring, draw, second, 1)
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
