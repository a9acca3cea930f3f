"""The evolutionary operators of Algorithm 1: first generation, survivors, offspring.

Every candidate's random numbers come from (seed, round, index) alone, so that neither resuming nor
the number of workers nor the order of arrival changes a result.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from efficientllava.allocation.search.policy import Genes, PolicySpace

ATTEMPTS = 50
"""How often an offspring that was evaluated before, or missed the budget, is drawn again."""


def stream(seed: int, round_number: int, index: int) -> Random:
    """The random numbers of one candidate."""
    return Random(f"{seed}/{round_number}/{index}")


@dataclass(frozen=True)
class Candidate:
    """A policy that was evaluated.

    Attributes:
        genes: level index per gene.
        origin: how it came about.
        projector: how often the projector had moved when it was evaluated.
    """

    round: int
    index: int
    genes: Genes
    origin: str
    mean_sparsity: float
    loss: float
    complexity: float
    risk: float
    projector: int

    def as_row(self) -> dict[str, Any]:
        """As a row of the history."""
        return {**asdict(self), "genes": list(self.genes)}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Candidate:
        """From a row of the history."""
        return cls(**{**row, "genes": tuple(row["genes"])})


@dataclass(frozen=True)
class Proposal:
    """A policy to evaluate."""

    genes: Genes
    origin: str


def first_generation(space: PolicySpace, count: int, ratio: float, seed: int) -> list[Proposal]:
    """The uniform policy (where the budget holds it) and distinct random ones."""
    proposals = []
    uniform = space.uniform(ratio)
    if space.in_budget(uniform):
        proposals.append(Proposal(uniform, "uniform"))
    known = {proposal.genes for proposal in proposals}
    for index in range(len(proposals), count):
        random = stream(seed, 1, index)
        for _ in range(ATTEMPTS):
            if (genes := space.random(random)) not in known:
                known.add(genes)
                proposals.append(Proposal(genes, "random"))
                break
    return proposals


def survivors(candidates: Collection[Candidate], count: int) -> list[Candidate]:
    """The `count` candidates of lowest risk; ties go to the older one."""
    return sorted(candidates, key=lambda c: (c.risk, c.round, c.index))[:count]


def offspring(
    space: PolicySpace,
    parents: Sequence[Candidate],
    count: int,
    known: Collection[Genes],
    mutation: float,
    seed: int,
    round_number: int,
) -> list[Proposal]:
    """New policies from the survivors: crossover and mutation in turn, repaired into the budget.

    Args:
        known: policies evaluated before; none is proposed again.

    Returns:
        Up to `count` proposals: fewer where the space is nearly exhausted.
    """
    seen = set(known)
    proposals = []
    for index in range(count):
        random = stream(seed, round_number, index)
        for _ in range(ATTEMPTS):
            if index % 2 == 0 and len(parents) > 1:
                first, second = random.sample(list(parents), 2)
                genes, origin = space.crossover(first.genes, second.genes, random), "crossover"
            else:
                genes = space.mutate(random.choice(list(parents)).genes, mutation, random)
                origin = "mutation"
            repaired = space.repair(genes, random)
            if repaired is not None and repaired not in seen:
                seen.add(repaired)
                proposals.append(Proposal(repaired, origin))
                break
    return proposals
