"""Where this engine and SparseGPT as published differ: against float64 runs of both.

    python -m bench obs_accuracy                           # 2048 wide, 512 rows, 4 problems
    python -m bench obs_accuracy --width 4096 --rows 4096 --problems 1 --device cuda

Per problem and code: zeros, weights whose mask differs from the float64 run's with the same count,
and the relative difference of the output error from that run's, itself taken in float64.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench import options_of


@dataclass
class Group:
    """Matrices of a decoder block that share an input.

    Attributes:
        names: their names.
        rows: [out] of each.
        columns: the width of their input.
    """

    names: tuple[str, ...]
    rows: tuple[int, ...]
    columns: int


def problem(group: Group, seed: int, device: str = "cpu") -> tuple[list[Any], Any]:
    """Random weights, and the Hessian of inputs with 64 strong directions, noise and scales."""
    generator = torch.Generator().manual_seed(seed)
    strong = torch.randn(group.columns, 64, generator=generator)
    scale = torch.rand(group.columns, generator=generator) + 0.5
    matrix = torch.eye(group.columns).addmm_(strong, strong.T, alpha=0.25)
    matrix *= 2 * scale[:, None] * scale
    weights = [torch.randn(rows, group.columns, generator=generator) * 0.02 for rows in group.rows]
    return [weight.to(device) for weight in weights], matrix.to(device)


def in_float32(factor: Any) -> Any:
    """A factor that was made in float64, rounded."""
    return replace(factor, upper=factor.upper.float())


@torch.no_grad()
def fasterprune(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    sparsity: float,
    blocksize: int = 128,
    percdamp: float = 0.01,
    quotas: Sequence[int] | None = None,
    factor: torch.Tensor | None = None,
) -> torch.Tensor:
    """Prune one matrix [out, in] to a sparsity; returns the pruned copy, in the Hessian's dtype.

    It prunes one weight more than asked for in every block of columns, as published: the mask is
    `score <= threshold` with the threshold at index int(numel * sparsity) of the sorted scores.
    Dead inputs count as 1 in the mean that its damping is a share of, ours leaves them out: the two
    agree where none is dead, as in the bench's problems.
    To compare like with like (not published): with `quotas` it prunes so many in each block, and
    `factor` is used as the upper factor of the inverse.
    """
    W = weight.to(hessian.dtype, copy=True)
    H = hessian.clone()
    dead = torch.diag(H) == 0
    H[dead, dead] = 1
    W[:, dead] = 0
    rows, columns = W.shape

    Losses = torch.zeros(rows, dtype=W.dtype, device=W.device)
    damp = percdamp * torch.mean(torch.diag(H))
    diag = torch.arange(columns, device=W.device)
    H[diag, diag] += damp
    if factor is None:
        H = torch.linalg.cholesky(H)
        H = torch.cholesky_inverse(H)
        H = torch.linalg.cholesky(H, upper=True)
    else:
        H = factor
    Hinv = H

    for i1 in range(0, columns, blocksize):
        i2 = min(i1 + blocksize, columns)
        count = i2 - i1

        W1 = W[:, i1:i2].clone()
        Q1 = torch.zeros_like(W1)
        Err1 = torch.zeros_like(W1)
        Losses1 = torch.zeros_like(W1)
        Hinv1 = Hinv[i1:i2, i1:i2]

        tmp = W1**2 / (torch.diag(Hinv1).reshape((1, -1))) ** 2
        at = int(tmp.numel() * sparsity) if quotas is None else quotas[i1 // blocksize] - 1
        thresh = torch.sort(tmp.flatten())[0][at]
        mask1 = tmp <= thresh

        for i in range(count):
            w = W1[:, i]
            d = Hinv1[i, i]

            q = w.clone()
            q[mask1[:, i]] = 0

            Q1[:, i] = q
            Losses1[:, i] = (w - q) ** 2 / d**2

            err1 = (w - q) / d
            W1[:, i:] -= err1.unsqueeze(1).matmul(Hinv1[i, i:].unsqueeze(0))
            Err1[:, i] = err1

        W[:, i1:i2] = Q1
        Losses += torch.sum(Losses1, 1) / 2

        W[:, i2:] -= Err1.matmul(Hinv[i1:i2, i2:])
    return W


def main() -> None:
    """Run the variants, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--level", type=float, default=0.5)
    parser.add_argument("--problems", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = options_of(parser)

    from efficientllava.kernels.hessian import inverse_factor, output_error
    from efficientllava.kernels.obs import prune, quotas_of_blocks
    from efficientllava.kernels.precision import full_float32

    print("| problem | code | zeros | masks differ | error against float64 | float32 sum off by |")
    print("|---|---|---|---|---|---|")
    level = arguments.level
    for seed in range(arguments.problems):
        group = Group(("o",), (arguments.rows,), arguments.width)
        (weight,), single = problem(group, seed, arguments.device)
        double = single.double()
        exact, rounded = inverse_factor(double, dtype=double.dtype), inverse_factor(single)
        mixed = in_float32(exact)
        counts = quotas_of_blocks(arguments.rows, level, exact.dead.cpu(), 128)
        with full_float32():
            results = {
                "ours, float64": prune(weight.double(), exact, level),
                "published, float64, our counts": fasterprune(weight, double, level, quotas=counts),
                "published, float64": fasterprune(weight, double, level),
                "ours, float32": prune(weight, rounded, level),
                "ours, float32, factor made in float64": prune(weight, mixed, level),
                "published, float32, our counts": fasterprune(weight, single, level, quotas=counts),
                "published, float32": fasterprune(weight, single, level),
                "published, float32, our counts and factor": fasterprune(
                    weight, single, level, quotas=counts, factor=rounded.upper
                ),
            }
        base = results["ours, float64"]
        least = output_error(base - weight, double)
        for name, result in results.items():
            error = output_error(result.double() - weight, double)
            single_error = output_error(result.float() - weight, single)
            print(
                f"| {seed} | {name} | {int((result == 0).sum())} "
                f"| {int(((result == 0) != (base == 0)).sum())} | {error / least - 1:+.1e} "
                f"| {single_error / error - 1:+.1e} |",
                flush=True,
            )
