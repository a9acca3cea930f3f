"""OBS of one decoder block at all levels: this engine against SparseGPT's published procedure.

    python -m bench.obs                                   # 7B: 4096 wide, MLP 11008, 5 levels
    python -m bench.obs --width 1024 --mlp 2752 --repetitions 3

The reference runs each matrix at each level by itself; the engine runs the matrices that share
an input together. Both get the same Hessians. Results are compared as they come, run by run.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from tasks.environment import prepare, use_threads

LEVELS = (0.4, 0.45, 0.5, 0.55, 0.6)


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


def block_groups(width: int, mlp: int) -> list[Group]:
    """The seven matrices of a LLaMA block."""
    return [
        Group(("q", "k", "v"), (width,) * 3, width),
        Group(("o",), (width,), width),
        Group(("gate", "up"), (mlp,) * 2, width),
        Group(("down",), (width,), mlp),
    ]


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """(result, seconds, processor seconds of this process)."""
    started, used = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - started, time.process_time() - used


def floor(groups: list[Group], levels: int) -> dict[str, float]:
    """Operations no exact method of this kind avoids, and the speeds this machine does them at.

    Per group: rows x columns^2 for the errors' way to the right (half of 2 rows columns^2, for
    only columns to the right are touched), 2/3 columns^3 for the factor.
    """
    import torch
    from scipy.linalg import get_lapack_funcs

    updates = sum(levels * sum(g.rows) * g.columns**2 for g in groups)
    factors = sum(2 / 3 * g.columns**3 for g in groups)
    one, other = torch.randn(3072, 3072), torch.randn(3072, 3072)
    multiply = min(timed(lambda: one @ other)[1] for _ in range(5))
    size = min(4096, max(g.columns for g in groups))
    matrix = torch.eye(size).mul_(2.0).add_(0.1 / size).numpy()
    potrf, trtri = get_lapack_funcs(("potrf", "trtri"), (matrix,))
    factor = min(timed(lambda: trtri(potrf(matrix.T)[0]))[1] for _ in range(3))
    gemm, lapack = 2 * 3072**3 / multiply, 2 / 3 * size**3 / factor
    return {
        "update_tflop": updates / 1e12,
        "factor_tflop": factors / 1e12,
        "gemm_gflops": gemm / 1e9,
        "lapack_gflops": lapack / 1e9,
        "floor_s": updates / gemm + factors / lapack,
    }


def problem(group: Group, seed: int) -> tuple[list[Any], Any]:
    """Random weights, and the Hessian of inputs with 64 strong directions, noise and scales."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    strong = torch.randn(group.columns, 64, generator=generator)
    scale = torch.rand(group.columns, generator=generator) + 0.5
    matrix = torch.eye(group.columns).addmm_(strong, strong.T, alpha=0.25)
    matrix *= 2 * scale[:, None] * scale
    weights = [torch.randn(rows, group.columns, generator=generator) * 0.02 for rows in group.rows]
    return weights, matrix


def compared(ours: Any, theirs: Any, weight: Any, matrix: Any) -> dict[str, float]:
    """Share of equal masks, and the relative output errors of both."""
    from efficientllava.pruning.hessian import relative_error

    return {
        "same_mask": float(((ours == 0) == (theirs == 0)).double().mean()),
        "error": relative_error(ours, weight, matrix),
        "reference_error": relative_error(theirs, weight, matrix),
    }


def main() -> None:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--mlp", type=int, default=11008)
    parser.add_argument("--levels", type=float, nargs="+", default=list(LEVELS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=1, help="of the engine; medians")
    parser.add_argument("--groups", nargs="+", help="of q, o, gate, down: only these inputs")
    parser.add_argument(
        "--reference-levels", type=int, help="run the reference at this many levels, extrapolate"
    )
    wanted = parser.parse_args()
    prepare()
    use_threads(wanted.threads)

    import torch

    from bench.machine import machine
    from bench.sparsegpt_reference import fasterprune
    from efficientllava.pruning.hessian import inverse_factor
    from efficientllava.pruning.obs import prune_levels

    torch.set_num_threads(wanted.threads)
    groups = [
        group
        for group in block_groups(wanted.width, wanted.mlp)
        if not wanted.groups or group.names[0] in wanted.groups
    ]
    print(json.dumps({**vars(wanted), "machine": machine(), "load": os.getloadavg()[0]}))
    small = problem(Group(("w",), (16,), 64), 0)
    prune_levels(small[0], inverse_factor(small[1]), [0.5])  # compiled once, kept on disk
    bound = floor(groups, len(wanted.levels))
    print(json.dumps({key: round(value, 3) for key, value in bound.items()}), flush=True)

    print(
        "| input | matrices | engine s | of it factor s | reference s | ratio | processor ratio |"
    )
    print("|---|---|---|---|---|---|---|")
    total = {"engine": 0.0, "reference": 0.0, "engine_cpu": 0.0, "reference_cpu": 0.0}
    rows, runs = [], 0
    for seed, group in enumerate(groups):
        weights, matrix = problem(group, seed)
        seconds, factors, processor = [], [], []
        for _ in range(wanted.repetitions):
            factor, first, first_cpu = timed(lambda m=matrix: inverse_factor(m))
            ours, second, second_cpu = timed(
                lambda w=weights, f=factor: prune_levels(w, f, wanted.levels)
            )
            seconds.append(first + second)
            factors.append(first)
            processor.append(first_cpu + second_cpu)
        spent = spent_cpu = 0.0
        at = wanted.levels[: wanted.reference_levels]
        for name, weight, solutions in zip(group.names, weights, ours, strict=True):
            for level, solution in zip(at, solutions, strict=False):
                theirs, took, took_cpu = timed(
                    lambda w=weight, m=matrix, s=level: fasterprune(w, m, s)
                )
                spent, spent_cpu, runs = spent + took, spent_cpu + took_cpu, runs + 1
                rows.append((name, level, compared(solution, theirs, weight, matrix)))
        scale = len(wanted.levels) / len(at)
        engine, engine_cpu = median(seconds), median(processor)
        for key, value in (
            ("engine", engine),
            ("reference", spent * scale),
            ("engine_cpu", engine_cpu),
            ("reference_cpu", spent_cpu * scale),
        ):
            total[key] += value
        print(
            f"| {group.columns} | {', '.join(group.names)} | {engine:.2f} | {median(factors):.2f} "
            f"| {spent * scale:.2f} | {spent * scale / engine:.1f} "
            f"| {spent_cpu * scale / engine_cpu:.1f} |",
            flush=True,
        )
        del ours, weights, matrix, factor
    print(
        f"| all | {sum(len(g.names) for g in groups)} | {total['engine']:.2f} | "
        f"| {total['reference']:.2f} | {total['reference'] / total['engine']:.1f} "
        f"| {total['reference_cpu'] / total['engine_cpu']:.1f} |"
    )
    print(
        f"reference runs measured: {runs}; floor reached: {bound['floor_s'] / total['engine']:.2f}"
    )
    print("| matrix | level | same mask | output error | reference's | relative difference |")
    print("|---|---|---|---|---|---|")
    for name, level, row in rows:
        difference = row["error"] / row["reference_error"] - 1
        print(
            f"| {name} | {level} | {row['same_mask']:.7f} | {row['error']:.6g} "
            f"| {row['reference_error']:.6g} | {difference:+.2e} |"
        )
    print(f"load average after: {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
