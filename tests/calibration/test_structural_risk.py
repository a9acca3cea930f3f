"""Structural risk and importance weights against the paper's formulas."""

from __future__ import annotations

from math import exp, log, prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientllava.allocation.search.projector import importance_weights
from efficientllava.calibration.structural_risk import (
    geometric_mean,
    mean_log_norm,
    structural_risk,
)

ratios = st.lists(st.floats(0.1, 1.5), min_size=4, max_size=4)


@given(first=ratios, second=ratios)
def test_complexity_orders_as_the_product_of_norms(first: list[float], second: list[float]) -> None:
    difference = log(prod(first)) - log(prod(second))
    if abs(difference) > 1e-9:
        assert (mean_log_norm(first) < mean_log_norm(second)) == (difference < 0)
    assert geometric_mean(first) == pytest.approx(prod(first) ** 0.25)


def test_matrix_of_zeros_stays_a_number() -> None:
    assert mean_log_norm([0.0, 1.0]) < mean_log_norm([0.1, 1.0]) < 0


def test_risk_is_minimised_in_both_terms() -> None:
    assert structural_risk(2.0, -0.1, 0.5) == pytest.approx(1.95)
    assert structural_risk(2.0, -0.2, 0.5) < structural_risk(2.0, -0.1, 0.5)
    assert structural_risk(2.0, -0.2, 0.0) == 2.0


def test_importance_is_equation_seven() -> None:
    policies = [[0.4, 0.5], [0.4, 0.6], [0.6, 0.6], [0.5, 0.5]]

    def distance(a: list[float], b: list[float]) -> float:
        return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))

    for neighbours in (1, 2, 5):
        scores = []
        for m, policy in enumerate(policies):
            others = sorted(distance(policy, q) for i, q in enumerate(policies) if i != m)
            scores.append(exp(-sum(others[:neighbours])))
        expected = [score / sum(scores) for score in scores]
        assert importance_weights(policies, neighbours) == pytest.approx(expected)


def test_dense_regions_weigh_more() -> None:
    crowd = [[0.5 + 0.01 * i] * 40 for i in range(6)]
    weights = importance_weights([*crowd, [0.9] * 40], 5)
    assert sum(weights) == pytest.approx(1.0)
    assert min(weights[:6]) > weights[6]
