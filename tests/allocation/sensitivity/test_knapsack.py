"""The exact knapsack against every policy there is."""

from __future__ import annotations

from itertools import product
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from efficientllava.allocation.sensitivity import knapsack as module
from efficientllava.allocation.sensitivity.knapsack import knapsack, nearest
from efficientllava.errors import UserError
from efficientllava.parameters import SensitivityParameters

GRIDS = ([0.4, 0.5, 0.6], [0.2, 0.35, 0.5, 0.65], [0.25, 0.5, 0.75], [0.1, 0.45, 0.5])


def every_policy(sizes: list[int], levels: list[float], low: float, high: float) -> dict[int, list]:
    """Policies by their number of zeros (in ten-thousandths), within the bounds."""
    found: dict[int, list] = {}
    for policy in product(range(len(levels)), repeat=len(sizes)):
        zeros = sum(round(levels[i] * 10_000) * s for i, s in zip(policy, sizes, strict=True))
        if round(low * 10_000) * sum(sizes) <= zeros <= round(high * 10_000) * sum(sizes):
            found.setdefault(zeros, []).append(policy)
    return found


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.sampled_from([1, 2, 3, 8, 12, 35]), min_size=1, max_size=5),
    st.sampled_from(GRIDS),
    st.sampled_from([0.4, 0.5, 0.52]),
    st.sampled_from([0.0, 0.01, 0.1]),
    st.integers(0, 10**6),
)
def test_it_is_the_best_of_all(
    sizes: list[int], levels: list[float], ratio: float, band: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    costs = random.normal(size=(len(sizes), len(levels)))
    costs[random.random(costs.shape) < 0.15] = np.inf
    known = {
        zeros: [p for p in policies if np.isfinite(costs[range(len(p)), p]).all()]
        for zeros, policies in every_policy(sizes, levels, ratio, ratio + band).items()
    }
    known = {zeros: policies for zeros, policies in known.items() if policies}
    if not known:
        with pytest.raises(UserError, match="has a mean ratio in"):
            knapsack(costs, levels, sizes, ratio, ratio + band)
        return
    found = tuple(knapsack(costs, levels, sizes, ratio, ratio + band))
    least = known[min(known)]
    assert found in least, "the budget is an equality, or the least above it"

    def cost(policy: tuple[int, ...]) -> float:
        return float(sum(costs[i, level] for i, level in enumerate(policy)))

    assert cost(found) == pytest.approx(min(map(cost, least)))


@settings(deadline=None, max_examples=100)
@given(st.integers(2, 40), st.sampled_from(GRIDS), st.booleans(), st.integers(0, 10**6))
def test_what_the_relaxation_leaves_out_changes_nothing(
    count: int, levels: list[float], ties: bool, seed: int
) -> None:
    """The policy of the whole table, also where several cost the same."""
    random = np.random.default_rng(seed)
    shape = count, len(levels)
    costs = random.integers(0, 4, shape) / 1.0 if ties else random.normal(size=shape)
    units = random.choice([1, 3, 8], (count, 1)) * np.arange(len(levels))
    budget = int(units[range(count), random.integers(0, len(levels), count)].sum())
    with patch.object(module, "FREE", 1):
        assert module._cheapest(costs, units, budget) == module._tabulated(costs, units, budget)


def test_thousands_of_experts() -> None:
    """The matrices of Qwen3-VL-30B-A3B, whose whole table would have 4 GB."""
    block = [2048 * width for width in (4096, 512, 512, 4096, *(128 * [1536, 768]))]
    sizes, levels = np.array(48 * block), np.arange(0.2, 0.81, 0.05).round(2)
    scale = np.exp(np.random.default_rng(0).normal(size=len(sizes))) * sizes
    costs = scale[:, None] * (levels / (1 - levels)) ** 2
    policy = knapsack(costs, levels.tolist(), sizes.tolist(), 0.5, 0.5)
    ratios = levels[policy]
    assert ratios @ sizes / sizes.sum() == pytest.approx(0.5, abs=1e-12)

    def bound(price: float) -> float:
        """Of the cost of every policy with these zeros, by weak duality."""
        return float((costs - price * sizes[:, None] * (levels - 0.5)).min(axis=1).sum())

    best = -minimize_scalar(lambda price: -bound(price), (0.1, 1)).fun
    assert 0 <= costs[range(len(sizes)), policy].sum() / best - 1 < 1e-4


def test_nearest_snaps_to_the_grid_with_exactly_the_budget() -> None:
    levels, sizes = [0.3, 0.4, 0.5, 0.6, 0.7], [3, 1, 1, 3, 8, 8, 8]
    assert nearest([0.5] * 7, levels, sizes, 0.5, 0.5) == [2] * 7
    snapped = nearest([0.41, 0.5, 0.5, 0.41, 0.52, 0.53, 0.53], levels, sizes, 0.5, 0.5)
    assert sum(levels[i] * s for i, s in zip(snapped, sizes, strict=True)) == pytest.approx(16.0)


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(ValueError, match="NaN"):
        knapsack(np.array([[0.0, np.nan]]), [0.4, 0.5], [1], 0.5, 0.5)
    with pytest.raises(UserError, match="too many units for its matrices"):
        knapsack(np.zeros((300, 2)), [0.4, 0.5001], [10**7 + i for i in range(300)], 0.45, 0.5)


@given(st.floats(0.0002, 0.9498), st.sampled_from([0.05, 0.1]), st.sampled_from([0.1, 0.3]))
def test_levels_lie_on_both_sides_of_the_target(ratio: float, step: float, reach: float) -> None:
    levels = SensitivityParameters(step=step, reach=reach).levels(ratio)
    assert levels == sorted(set(levels)) and round(ratio, 4) in levels
    assert 0.0 <= levels[0] < round(ratio, 4) < levels[-1] <= 0.95
    assert "-0.0" not in map(str, levels)
