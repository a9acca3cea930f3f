"""Refinement on a fixed mask: against normal equations row by row, and never worse than OBS."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientllava.data.proxy import ProxyData
from efficientllava.kernels import hessian, obs
from efficientllava.models.families import adapter_for
from efficientllava.parameters import ObsParameters
from efficientllava.pruning.refine import refine
from efficientllava.pruning.sequential import prune_model, verify
from tests.conftest import random_llava
from tests.kernels.test_obs import problem

METHODS = ["least_squares", "admm"]


def loop_least_squares(
    weight: torch.Tensor, matrix: torch.Tensor, kept: torch.Tensor
) -> torch.Tensor:
    """One row at a time: the normal equations over its kept columns, in float64."""
    full, result = matrix.double(), torch.zeros_like(weight, dtype=torch.float64)
    for row in range(weight.shape[0]):
        columns = [column for column in range(weight.shape[1]) if kept[row, column]]
        target = (full @ weight[row].double())[columns]
        result[row, columns] = torch.linalg.solve(full[columns][:, columns], target)
    return result


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
def test_refined_weights_solve_the_normal_equations(method: str, ratio: float) -> None:
    weight, matrix = problem(tokens=400)
    pruned = obs.prune(weight, hessian.inverse_factor(matrix), ratio)
    refined = refine(weight, pruned, matrix, method)
    assert torch.equal(refined == 0, pruned == 0)
    expected = loop_least_squares(weight, matrix, pruned != 0)
    torch.testing.assert_close(refined.double(), expected, rtol=1e-4, atol=1e-4)


def row_errors(new: torch.Tensor, dense: torch.Tensor, matrix: torch.Tensor) -> list[float]:
    change, full = (new - dense).double(), matrix.double()
    return [float(row @ full @ row) for row in change]


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(METHODS), st.floats(0, 1), st.integers(0, 999), st.sampled_from([4, 12, 60]))
def test_no_row_is_worse_than_obs_on_the_same_mask(
    method: str, ratio: float, seed: int, tokens: int
) -> None:
    """Also where there are fewer tokens than inputs, and H is singular."""
    weight, matrix = problem(tokens=tokens, seed=seed)
    pruned = obs.prune(weight, hessian.inverse_factor(matrix), ratio)
    refined = refine(weight, pruned, matrix, method)
    assert torch.equal(refined[pruned == 0], torch.zeros(int((pruned == 0).sum())))
    before, after = row_errors(pruned, weight, matrix), row_errors(refined, weight, matrix)
    assert all(new <= old * (1 + 1e-9) for new, old in zip(after, before, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_refined_models_keep_their_counts_and_lose_less(method: str, proxy: ProxyData) -> None:
    plain, refined = adapter_for(random_llava()), adapter_for(random_llava())
    policy = {matrix.name: 0.5 for matrix in plain.matrices}
    before = prune_model(plain, proxy, "obs", policy, ObsParameters())
    after = prune_model(refined, proxy, "obs", policy, ObsParameters(), refinement=method)
    verify(refined, after)
    assert [row["zeros"] for row in after] == [row["zeros"] for row in before]
    # the first block sees the same inputs in both; later ones see other blocks before them
    for old, new in zip(before[:7], after[:7], strict=True):
        assert new["relative_error"] < old["relative_error"], new["name"]
    assert sum(r["relative_error"] for r in after) < sum(r["relative_error"] for r in before)
