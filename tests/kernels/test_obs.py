"""OBS against closed forms, a naive float64 version, golden numbers and its own invariants."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientllava.errors import UserError
from efficientllava.kernels import hessian, obs
from efficientllava.kernels.masks import magnitude, zeros_per_group


def problem(
    rows: int = 6, columns: int = 16, tokens: int = 80, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight matrix and the Hessian of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    mixing = torch.eye(columns) + 0.4 * torch.randn(columns, columns, generator=generator)
    inputs = torch.randn(tokens, columns, generator=generator) @ mixing
    matrix = hessian.empty(columns)
    hessian.accumulate(matrix, 0, inputs)
    return weight, (matrix + matrix.T) / 2


def damped(matrix: torch.Tensor, share: float = 0.01) -> torch.Tensor:
    matrix = matrix.double()
    return matrix + share * matrix.diagonal().mean() * torch.eye(
        matrix.shape[0], dtype=torch.float64
    )


def naive(weight: torch.Tensor, matrix: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """OBS one column at a time in float64: the inverse over the columns that are left is computed
    afresh for each; no blocks, no Cholesky factor."""
    result, full = weight.double().clone(), damped(matrix)
    for column in range(weight.shape[1]):
        inverse = torch.linalg.inv(full[column:, column:])
        error = torch.where(mask[:, column], result[:, column], 0.0) / inverse[0, 0]
        result[:, column:] -= error[:, None] * inverse[0][None, :]
        result[mask[:, column], column] = 0.0
    return result


def exact_least_squares(
    weight: torch.Tensor, matrix: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    full, result = damped(matrix), torch.zeros_like(weight, dtype=torch.float64)
    for row in range(weight.shape[0]):
        kept = ~mask[row]
        target = full[kept] @ weight[row].double()
        result[row, kept] = torch.linalg.solve(full[kept][:, kept], target)
    return result


def test_golden_matrix() -> None:
    weight = torch.tensor([[math.sin(1 + 0.7 * i + 1.3 * j) for j in range(8)] for i in range(4)])
    inputs = torch.tensor(
        [[math.cos(0.3 + 0.9 * t + 0.074 * j * t + 0.2 * j) for j in range(8)] for t in range(16)]
    )
    matrix = hessian.empty(8)
    hessian.accumulate(matrix, 0, inputs)
    factor = hessian.inverse_factor(matrix, 0.01)
    two_of_four = obs.prune(weight, factor, 0.5, 8, group_size=4)
    expected = torch.tensor([0.84147, 0, 0, -0.76321, 0, -0.03173, 0, -0.01074])
    torch.testing.assert_close(two_of_four[0], expected, atol=1e-5, rtol=0)
    error = hessian.relative_error(two_of_four, weight, matrix)
    assert error == pytest.approx(0.144494, abs=1e-5)
    unstructured = obs.prune(weight, factor, 0.5, 8)
    assert int((unstructured == 0).sum()) == 16
    error = hessian.relative_error(unstructured, weight, matrix)
    assert error == pytest.approx(0.145885, abs=1e-5)


def test_two_columns_closed_form() -> None:
    a, b, c = 2.0, 0.7, 1.5
    matrix = torch.tensor([[a, b], [b, c]], dtype=torch.float64)
    factor = hessian.inverse_factor(matrix, 1e-12, dtype=torch.float64)
    weight = torch.tensor([[0.1, 1.0]], dtype=torch.float64)
    pruned = obs.prune(weight, factor, 0.5)
    assert pruned[0].tolist() == pytest.approx([0.0, 1.0 + b / c * 0.1])
    loss = hessian.output_error(pruned - weight, matrix) / 2
    assert loss == pytest.approx(0.1**2 * (a - b**2 / c) / 2)


def test_equals_naive_float64_with_the_same_mask() -> None:
    weight, matrix = problem()
    pruned = obs.prune(weight, hessian.inverse_factor(matrix), 0.5, block_size=4)
    expected = naive(weight, matrix, pruned == 0)
    torch.testing.assert_close(pruned.double(), expected, rtol=1e-5, atol=1e-5)


def test_sum_of_column_losses_is_the_output_error() -> None:
    weight, matrix = problem()
    weight, full = weight.double(), damped(matrix)
    factor = hessian.inverse_factor(matrix.double(), dtype=torch.float64)
    pruned = obs.prune(weight, factor, 0.5)
    total, current = 0.0, weight.clone()
    for column in range(16):
        inverse = torch.linalg.inv(full[column:, column:])
        removed = torch.where(pruned[:, column] == 0, current[:, column], 0.0)
        total += float((removed**2 / inverse[0, 0]).sum()) / 2
        current[:, column:] -= (removed / inverse[0, 0])[:, None] * inverse[0][None, :]
    error = hessian.output_error(pruned - weight, full)
    assert total == pytest.approx(error / 2, rel=1e-9)


def test_identity_hessian_gives_the_magnitude_mask() -> None:
    weight, _ = problem(columns=12)
    pruned = obs.prune(weight, hessian.inverse_factor(torch.eye(12) * 3.0), 0.4, block_size=12)
    torch.testing.assert_close(pruned, magnitude(weight, 0.4))


def test_scaling_inputs_changes_no_mask() -> None:
    weight, matrix = problem()
    first = obs.prune(weight, hessian.inverse_factor(matrix), 0.5, 8) == 0
    scaled = obs.prune(weight, hessian.inverse_factor(matrix * 100.0), 0.5, 8) == 0
    assert torch.equal(first, scaled)


def test_error_order_exact_obs_mask_only() -> None:
    weight, matrix = problem(rows=16, columns=32, tokens=200)
    pruned = obs.prune(weight, hessian.inverse_factor(matrix), 0.5)
    mask = pruned == 0
    best = exact_least_squares(weight, matrix, mask)
    full = damped(matrix)
    errors = [
        hessian.output_error(candidate.double() - weight.double(), full)
        for candidate in (best, pruned, weight.masked_fill(mask, 0.0))
    ]
    assert errors[0] <= errors[1] * (1 + 1e-9)
    assert errors[1] < errors[2]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 20),
    block=st.integers(1, 24),
    ratio=st.floats(0, 1),
    dead=st.integers(0, 3),
)
def test_exact_number_of_zeros(
    rows: int, columns: int, block: int, ratio: float, dead: int
) -> None:
    weight, matrix = problem(rows, columns, seed=rows * 31 + columns)
    dead = min(dead, columns)
    matrix[:dead], matrix[:, :dead] = 0.0, 0.0
    pruned = obs.prune(weight, hessian.inverse_factor(matrix), ratio, block)
    assert int((pruned == 0).sum()) == max(round(ratio * rows * columns), rows * dead)
    assert torch.isfinite(pruned).all()
    assert (pruned[:, :dead] == 0).all()


@pytest.mark.parametrize(("zeros", "group"), [(1, 4), (2, 4), (3, 4), (4, 8)])
def test_pattern_has_exactly_n_zeros_per_group(zeros: int, group: int) -> None:
    weight, matrix = problem(columns=32)
    pruned = obs.prune(weight, hessian.inverse_factor(matrix), zeros / group, 16, group)
    counts = (pruned == 0).view(6, -1, group).sum(dim=2)
    assert (counts == zeros).all()


@pytest.mark.parametrize("kernel", ["eager", "compiled"])
def test_masks_follow_the_importance_of_rows(kernel: obs.Kernel) -> None:
    weight, matrix = problem(rows=16, columns=32, tokens=200)
    factor = hessian.inverse_factor(matrix)
    importance = torch.logspace(-1, 1, 16)
    plain = obs.prune(weight, factor, 0.5, 32, kernel=kernel)
    weighted = obs.prune(weight, factor, 0.5, 32, kernel=kernel, importance=importance)
    # one block of columns: its mask is taken at once, from the dense weights
    score = (weight / factor.upper.diagonal()).square() * importance[:, None]
    limit = score.flatten().kthvalue(256).values
    assert torch.equal(weighted == 0, score <= limit)
    expected = naive(weight, matrix, weighted == 0)
    torch.testing.assert_close(weighted.double(), expected, rtol=1e-5, atol=1e-5)

    def error(pruned: torch.Tensor) -> float:
        scaled = (pruned - weight) * importance.sqrt()[:, None]
        return hessian.output_error(scaled, matrix)

    assert error(weighted) < 0.8 * error(plain)
    assert hessian.output_error(weighted - weight, matrix) > hessian.output_error(
        plain - weight, matrix
    )


@pytest.mark.parametrize("importance", [torch.full((6,), 3.0), torch.zeros(6)])
def test_rows_of_the_same_importance_count_alike(importance: torch.Tensor) -> None:
    weight, matrix = problem()
    factor = hessian.inverse_factor(matrix)
    weighted = obs.prune(weight.half(), factor, 0.5, 8, importance=importance)
    assert torch.equal(weighted, obs.prune(weight.half(), factor, 0.5, 8))


def test_no_row_is_given_up() -> None:
    weight, matrix = problem(rows=8, columns=64, tokens=300)
    importance = torch.ones(8)
    importance[0] = 0.0
    factor = hessian.inverse_factor(matrix)
    pruned = obs.prune(weight, factor, 0.1, 64, importance=importance)
    assert int((pruned == 0).sum()) == round(0.1 * weight.numel())
    assert 0 < int((pruned[0] == 0).sum())
    scale = obs._row_scale(importance, factor)
    assert scale[0] == pytest.approx(obs.LEAST_SCALE) and torch.isfinite(pruned).all()


def test_levels_and_matrices_in_one_pass_equal_separate_runs() -> None:
    first, matrix = problem(rows=24, columns=48, tokens=300)
    second, _ = problem(rows=40, columns=48, seed=9)
    factor = hessian.inverse_factor(matrix)
    levels = [0.0, 0.3, 0.5, 0.75, 1.0]
    together = obs.prune_levels([first, second], factor, levels, block_size=16)
    for weight, solutions in zip((first, second), together, strict=True):
        for level, solution in zip(levels, solutions, strict=True):
            assert torch.equal(solution, obs.prune(weight, factor, level, block_size=16))


def test_ratio_zero_changes_nothing_and_one_leaves_nothing() -> None:
    weight, matrix = problem()
    factor = hessian.inverse_factor(matrix)
    assert torch.equal(obs.prune(weight, factor, 0.0), weight)
    assert not obs.prune(weight, factor, 1.0).any()


def test_block_that_cuts_groups_is_refused() -> None:
    weight, matrix = problem()
    with pytest.raises(UserError, match="not a multiple of the group size"):
        obs.prune(weight, hessian.inverse_factor(matrix), 0.5, block_size=6, group_size=4)


def test_ratio_between_group_counts_is_refused() -> None:
    weight, matrix = problem()
    with pytest.raises(UserError, match="whole number of zeros"):
        obs.prune(weight, hessian.inverse_factor(matrix), 0.45, block_size=8, group_size=4)


@pytest.mark.parametrize(("zeros", "group"), [(5, 32), (1, 3), (2, 3), (127, 128), (1, 4)])
def test_a_ratio_at_four_decimals_is_its_pattern(zeros: int, group: int) -> None:
    """The database names its levels by four decimals."""
    assert zeros_per_group(round(zeros / group, 4), group) == zeros
    with pytest.raises(UserError, match="whole number of zeros"):
        zeros_per_group((zeros + 0.1) / group, group)
