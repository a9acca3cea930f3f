"""The space of pruning policies: levels per gene, the sparsity budget, and moves inside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from efficientllava.errors import UserError

Genes = tuple[int, ...]
"""A policy: the index of a level for every gene."""

RESTARTS = 200
TOLERANCE = 1e-9


@dataclass(frozen=True)
class PolicySpace:
    """C^K of the paper with its budget (method.md section 1).

    Attributes:
        levels: ratios a gene may take, ascending.
        sizes: weights governed by each gene.
        lowest, highest: bounds of the mean ratio, weighted by size.
    """

    levels: tuple[float, ...]
    sizes: tuple[int, ...]
    lowest: float
    highest: float

    def mean_sparsity(self, genes: Genes) -> float:
        """The mean ratio, weighted by the number of weights."""
        zeros = sum(self.levels[gene] * size for gene, size in zip(genes, self.sizes, strict=True))
        return zeros / sum(self.sizes)

    def in_budget(self, genes: Genes) -> bool:
        """Whether the mean ratio lies in the band."""
        return self._holds(self.mean_sparsity(genes))

    def _holds(self, mean: float) -> bool:
        return self.lowest - TOLERANCE <= mean <= self.highest + TOLERANCE

    def ratios(self, genes: Genes) -> list[float]:
        """alpha of a policy: the ratio of every gene."""
        return [self.levels[gene] for gene in genes]

    def repair(self, genes: Genes, random: Random) -> Genes | None:
        """Random single-level moves until the budget holds; None if they do not get there.

        A move that would jump across the whole band is only taken when no other is left.
        """
        current, total = list(genes), sum(self.sizes)
        for _ in range(4 * len(current) * len(self.levels)):
            mean = self.mean_sparsity(tuple(current))
            if self._holds(mean):
                return tuple(current)
            step = 1 if mean < self.lowest else -1
            moved = {
                index: mean + (self.levels[gene + step] - self.levels[gene]) * size / total
                for index, (gene, size) in enumerate(zip(current, self.sizes, strict=True))
                if 0 <= gene + step < len(self.levels)
            }
            if not moved:
                return None
            short = [index for index, after in moved.items() if not self._jumps(after, step)]
            current[random.choice(short or list(moved))] += step
        return None

    def _jumps(self, mean: float, step: int) -> bool:
        return mean > self.highest + TOLERANCE if step > 0 else mean < self.lowest - TOLERANCE

    def random(self, random: Random) -> Genes:
        """A random policy in the budget.

        Raises:
            UserError: no policy in the budget was found.
        """
        for _ in range(RESTARTS):
            drawn = tuple(random.randrange(len(self.levels)) for _ in self.sizes)
            if (repaired := self.repair(drawn, random)) is not None:
                return repaired
        raise UserError(
            f"no policy with levels {list(self.levels)} has a mean ratio in "
            f"[{self.lowest:g}, {self.highest:g}]",
            where="search.band",
            remedy="widen search.band, or give search.offsets (for n:m obs.patterns) on both "
            "sides of the band",
        )

    def uniform(self, ratio: float) -> Genes:
        """Every gene at the level nearest to the target ratio."""
        nearest = min(range(len(self.levels)), key=lambda i: abs(self.levels[i] - ratio))
        return (nearest,) * len(self.sizes)

    def crossover(self, first: Genes, second: Genes, random: Random) -> Genes:
        """Uniform crossover: every gene from either parent."""
        return tuple(random.choice(pair) for pair in zip(first, second, strict=True))

    def mutate(self, genes: Genes, probability: float, random: Random) -> Genes:
        """Each gene moves one level up or down with the given probability."""
        top = len(self.levels) - 1
        return tuple(
            min(top, max(0, gene + random.choice((-1, 1))))
            if random.random() < probability
            else gene
            for gene in genes
        )


@dataclass(frozen=True)
class MatrixPolicies:
    """A policy space, and which gene rules which matrix.

    Attributes:
        gene_of: index of a gene for every prunable matrix.
    """

    space: PolicySpace
    gene_of: tuple[int, ...]

    def ratios(self, genes: Genes) -> list[float]:
        """The ratio of every matrix under a policy."""
        levels = self.space.ratios(genes)
        return [levels[gene] for gene in self.gene_of]


def policy_space(
    levels: Sequence[float], sizes: Sequence[int], ratio: float, band: tuple[float, float]
) -> PolicySpace:
    """The space at a target ratio, checked to hold at least one policy.

    Args:
        levels: ratios a gene may take.
        sizes: weights governed by each gene.
        band: bounds of the mean ratio, relative to `ratio`.

    Raises:
        UserError: no policy meets the band.
    """
    space = PolicySpace(
        tuple(sorted(levels)), tuple(sizes), round(ratio + band[0], 9), round(ratio + band[1], 9)
    )
    check_band(space.levels, ratio, band)
    space.random(Random(0))
    return space


def check_band(levels: Sequence[float], ratio: float, band: tuple[float, float]) -> None:
    """Check what can be known without a model: the band lies between the extreme levels.

    Raises:
        UserError: no policy can have a mean ratio in the band.
    """
    lowest, highest = (round(ratio + end, 4) for end in band)
    if not levels or highest < min(levels) - TOLERANCE or lowest > max(levels) + TOLERANCE:
        raise UserError(
            f"no policy with levels {sorted(levels)} has a mean ratio in [{lowest:g}, {highest:g}]",
            where=f"search.band at ratio {ratio}",
            remedy="move search.band, or the levels: search.offsets, sensitivity.reach and "
            "sensitivity.step, or for n:m obs.patterns",
        )
