"""The Hessian and its factor, against closed forms and float64."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientllava.errors import UserError
from efficientllava.kernels import hessian


def of_inputs(inputs: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    result = hessian.empty(inputs.shape[1], dtype)
    hessian.accumulate(result, 0, inputs)
    return result


def test_equals_two_over_n_x_xt() -> None:
    inputs = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    exact = 2.0 / 50 * inputs.double().T @ inputs.double()
    torch.testing.assert_close(of_inputs(inputs).double(), exact, rtol=1e-6, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 40), max_size=6))
def test_does_not_depend_on_the_batch_split(cuts: list[int]) -> None:
    inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    whole = of_inputs(inputs)
    split, seen = hessian.empty(6), 0
    edges = [0, *sorted(cuts), 40]
    for start, end in zip(edges, edges[1:], strict=False):
        seen = hessian.accumulate(split, seen, inputs[start:end])
    assert seen == 40
    torch.testing.assert_close(split, whole, rtol=1e-5, atol=1e-6)


def test_factor_is_upper_cholesky_of_the_damped_inverse() -> None:
    inputs = torch.randn(30, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    matrix = of_inputs(inputs, torch.float64)
    factor = hessian.inverse_factor(matrix, 0.01, dtype=torch.float64)
    damped = matrix + 0.01 * matrix.diagonal().mean() * torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(factor.upper.T @ factor.upper, torch.linalg.inv(damped))
    assert torch.equal(factor.upper, factor.upper.triu())


def test_dead_inputs_are_found() -> None:
    inputs = torch.randn(30, 5, generator=torch.Generator().manual_seed(3))
    inputs[:, 2] = 0.0
    factor = hessian.inverse_factor(of_inputs(inputs))
    assert factor.dead.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("dead", [1, 4, 19])
def test_dead_inputs_do_not_change_the_damping(dead: int, scale: float) -> None:
    """The live part is the factor of the live inputs alone, whatever their scale."""
    live = torch.randn(90, 6, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    inputs = torch.zeros(90, 6 + dead, dtype=torch.float64)
    at = torch.randperm(6 + dead, generator=torch.Generator().manual_seed(dead))[:6].sort().values
    inputs[:, at] = scale * live
    matrix = of_inputs(inputs, torch.float64)
    factor = hessian.inverse_factor(matrix, 0.1, dtype=torch.float64)
    alone = hessian.inverse_factor(matrix[at][:, at], 0.1, dtype=torch.float64)
    torch.testing.assert_close(factor.upper[at][:, at], alone.upper)
    assert int(factor.dead.sum()) == dead and not alone.dead.any()


def test_without_any_live_input_there_is_a_factor() -> None:
    factor = hessian.inverse_factor(hessian.empty(5))
    assert factor.dead.all() and torch.isfinite(factor.upper).all()


def test_damping_is_raised_tenfold_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    matrix = torch.diag(torch.tensor([1.0, 1.0, -0.05]))
    with caplog.at_level(logging.WARNING):
        factor = hessian.inverse_factor(matrix, 0.01, name="blocks.0.q")
    assert factor.damping == pytest.approx(0.1)
    assert "blocks.0.q" in caplog.text
    assert "0.01" in caplog.text


def test_gives_up_with_name_tokens_and_remedy() -> None:
    matrix = torch.diag(torch.tensor([1.0, 1.0, -500.0]))
    with pytest.raises(UserError, match=r"blocks\.0\.q") as error:
        hessian.inverse_factor(matrix, 0.01, name="blocks.0.q", tokens=17)
    assert "17 calibration tokens" in str(error.value)
    assert "proxy.segments" in str(error.value)


def test_nan_activations_are_named() -> None:
    matrix = of_inputs(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(UserError, match="NaN or inf in the activations"):
        hessian.inverse_factor(matrix, name="blocks.3.mlp.down_proj")


def test_output_error_is_the_squared_output_difference() -> None:
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(20, 6, generator=generator)
    dense = torch.randn(3, 6, generator=generator)
    pruned = dense.masked_fill(dense.abs() < 0.5, 0.0)
    direct = ((pruned - dense) @ inputs.T).square().sum() * 2 / 20
    assert hessian.output_error(pruned - dense, of_inputs(inputs)) == pytest.approx(
        direct.item(), rel=1e-5
    )
    share = ((pruned - dense) @ inputs.T).square().sum() / (dense @ inputs.T).square().sum()
    assert hessian.relative_error(pruned, dense, of_inputs(inputs)) == pytest.approx(
        share.item(), rel=1e-5
    )


@pytest.mark.parametrize("size", [1, 2, 7, 33, 100])
def test_inverse_by_halves(size: int) -> None:
    """What CUDA's factorisation uses; in place, on a matrix that is stored column by column too."""
    generator = torch.Generator().manual_seed(size)
    rows = torch.randn(2 * size, size, generator=generator, dtype=torch.float64)
    lower = torch.linalg.cholesky(rows.T @ rows / size)
    expected = torch.linalg.inv(lower)
    for memory in (lower.clone(), lower.T.contiguous().T):
        hessian.invert_lower(memory, leaf=4)
        torch.testing.assert_close(memory, expected)
        assert torch.equal(memory, memory.tril())


def test_factor_by_torch_alone() -> None:
    """The way it goes on CUDA, against LAPACK's."""
    inputs = torch.randn(60, 40, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    matrix = of_inputs(inputs, torch.float64)
    expected = torch.linalg.inv(torch.linalg.cholesky(matrix))
    inverse = hessian.inverse_of_cholesky(matrix)
    assert inverse is not None
    torch.testing.assert_close(inverse, expected)
    assert torch.equal(inverse, inverse.tril())
    assert hessian.inverse_of_cholesky(matrix - 10.0 * torch.eye(40)) is None
    matrix[3, 3] = torch.nan
    assert hessian.inverse_of_cholesky(matrix) is None
