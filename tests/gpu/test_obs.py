"""The OBS kernel on a real card against the eager path there and the compiled loops of the CPU."""

from __future__ import annotations

import pytest
import torch

from efficientllava.kernels import hessian, obs

LEVELS = [0.4, 0.5, 0.6]


def problem(rows: int, columns: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator)
    mixing = torch.eye(columns) + 0.05 * torch.randn(columns, columns, generator=generator)
    inputs = torch.randn(2 * columns, columns, generator=generator) @ mixing
    inputs[:, 5:8] = 0
    matrix = hessian.empty(columns)
    hessian.accumulate(matrix, 0, inputs)
    return weight.to(device), matrix.to(device)


def kernel_of(device: torch.device) -> obs.Kernel:
    return "triton" if device.type == "cuda" else "compiled"


@pytest.mark.parametrize("group", [None, 4, 16])
@pytest.mark.parametrize(("rows", "columns"), [(1024, 1024), (300, 1376)])
def test_same_as_the_eager_path(
    card: torch.device, rows: int, columns: int, group: int | None
) -> None:
    weight, matrix = problem(rows, columns, card)
    factor, levels = hessian.inverse_factor(matrix), LEVELS if group is None else [0.25, 0.5]
    both = [
        obs.prune_levels([weight], factor, levels, 128, group, kernel)[0]
        for kernel in ("eager", kernel_of(card))
    ]
    for eager, fast in zip(*both, strict=True):
        assert ((eager == 0) == (fast == 0)).double().mean() > 0.9999
        errors = [hessian.relative_error(each, weight, matrix) for each in (eager, fast)]
        assert errors[0] == pytest.approx(errors[1], rel=1e-4)


def test_masks_and_errors_of_the_cpu(card: torch.device) -> None:
    weight, matrix = problem(512, 1024, card)
    here = obs.prune_levels([weight], hessian.inverse_factor(matrix), LEVELS)[0]
    host, hessian_of_host = weight.cpu(), matrix.cpu()
    there = obs.prune_levels([host], hessian.inverse_factor(hessian_of_host), LEVELS)[0]
    for one, other in zip(here, there, strict=True):
        assert ((one.cpu() == 0) == (other == 0)).double().mean() > 0.999
        found = hessian.relative_error(one.cpu(), host, hessian_of_host)
        assert found == pytest.approx(
            hessian.relative_error(other, host, hessian_of_host), rel=1e-3
        )


def test_the_same_bits_every_time(card: torch.device) -> None:
    weight, matrix = problem(256, 512, card)
    runs = [obs.prune_levels([weight], hessian.inverse_factor(matrix), LEVELS)[0] for _ in range(3)]
    for again in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(runs[0], again, strict=True))
