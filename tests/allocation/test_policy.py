"""The policy space: budget, repair and operators, as properties."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientllava.allocation.search.evolution import (
    Candidate,
    first_generation,
    offspring,
    stream,
    survivors,
)
from efficientllava.allocation.search.policy import PolicySpace, check_band, policy_space
from efficientllava.errors import UserError

LEVELS = (0.4, 0.45, 0.5, 0.55, 0.6)
SIZES = (9216, 9216, 9216, 9216, 24576, 24576, 24576) * 6


def space(low: float = 0.5, high: float = 0.51) -> PolicySpace:
    return PolicySpace(LEVELS, SIZES, low, high)


def candidate(genes: tuple[int, ...], risk: float, index: int = 0) -> Candidate:
    return Candidate(1, index, genes, "random", 0.5, risk, 0.0, risk, 0)


def test_mean_sparsity_is_weighted_by_size() -> None:
    two = PolicySpace((0.0, 1.0), (1, 3), 0.0, 1.0)
    assert two.mean_sparsity((0, 1)) == pytest.approx(0.75)


@settings(max_examples=50, deadline=None)
@given(genes=st.lists(st.integers(0, 4), min_size=42, max_size=42), seed=st.integers(0, 99))
def test_repair_meets_the_budget_by_single_moves(genes: list[int], seed: int) -> None:
    repaired = space().repair(tuple(genes), Random(seed))
    assert repaired is not None
    assert space().in_budget(repaired)
    if space().in_budget(tuple(genes)):
        assert repaired == tuple(genes)
    towards = {1 if b > a else -1 for a, b in zip(genes, repaired, strict=True) if a != b}
    assert len(towards) <= 1


@pytest.mark.timeout(60)
def test_thousands_of_experts_are_repaired_in_seconds() -> None:
    block = [2048 * width for width in (4096, 512, 512, 4096, *(128 * [1536, 768]))]
    experts = PolicySpace(LEVELS, tuple(48 * block), 0.5, 0.501)
    assert experts.in_budget(experts.random(Random(0)))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_operators_stay_in_the_space(seed: int) -> None:
    random = Random(seed)
    first, second = space().random(random), space().random(random)
    child = space().crossover(first, second, random)
    assert all(c in (a, b) for a, b, c in zip(first, second, child, strict=True))
    mutant = space().mutate(first, 0.5, random)
    assert all(0 <= b <= 4 and abs(a - b) <= 1 for a, b in zip(first, mutant, strict=True))
    assert space().mutate(first, 0.0, random) == first


def test_generations_are_distinct_seeded_and_in_budget() -> None:
    first = [p.genes for p in first_generation(space(), 16, 0.5, seed=3)]
    assert first[0] == (2,) * 42
    assert len(set(first)) == 16
    assert first == [p.genes for p in first_generation(space(), 16, 0.5, seed=3)]
    assert first[1:] != [p.genes for p in first_generation(space(), 16, 0.5, seed=4)][1:]
    parents = [candidate(genes, float(i), i) for i, genes in enumerate(first[:4])]
    children = [p.genes for p in offspring(space(), parents, 12, first, 0.1, 3, 2)]
    assert len(set(children)) == 12
    assert not set(children) & set(first)
    assert all(space().in_budget(genes) for genes in [*first, *children])


def test_an_exhausted_space_gives_fewer_offspring() -> None:
    small = PolicySpace((0.4, 0.5, 0.6), (1, 1), 0.5, 0.5)
    everything = [(0, 2), (1, 1), (2, 0)]
    parents = [candidate(genes, 0.0, i) for i, genes in enumerate(everything)]
    assert offspring(small, parents, 5, everything, 0.5, 0, 2) == []
    assert len(first_generation(small, 16, 0.5, 0)) == 3


def test_survivors_are_the_lowest_risks_and_ties_are_settled() -> None:
    several = [candidate((i,), risk, i) for i, risk in enumerate([3.0, 1.0, 2.0, 1.0])]
    assert [c.index for c in survivors(several, 3)] == [1, 3, 2]
    assert [c.index for c in survivors(several[::-1], 3)] == [1, 3, 2]


def test_band_beyond_the_levels_is_refused() -> None:
    with pytest.raises(UserError, match="search.band"):
        check_band(LEVELS, 0.5, (0.2, 0.3))
    check_band(LEVELS, 0.5, (-0.01, 0.01))


def test_band_between_reachable_means_is_refused() -> None:
    with pytest.raises(UserError, match="no policy with levels"):
        policy_space((0.4, 0.6), (1, 1), 0.5, (0.02, 0.03))


def test_every_candidate_has_its_own_random_numbers() -> None:
    keys = [(seed, number, index) for seed in (0, 1) for number in (1, 2) for index in (0, 1)]
    drawn = [stream(*key).random() for key in keys]
    assert len(set(drawn)) == len(keys)
    assert drawn == [stream(*key).random() for key in reversed(keys)][::-1]
