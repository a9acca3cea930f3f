"""OBS of one decoder block at all levels: this engine against SparseGPT's published procedure.

    python -m bench obs                                   # 7B: 4096 wide, MLP 11008, 5 levels
    python -m bench obs --width 1024 --mlp 2752 --repetitions 3
    python -m bench obs --device cuda --repetitions 5     # both on the GPU, without TF32
    python -m bench obs --exact                           # whose rounding a difference is

The reference runs each matrix at each level by itself; the engine runs the matrices that share
an input together. Both get the same Hessians. Results are compared as they come, run by run.
On CUDA everything runs once unmeasured (compilation, libraries, memory), and the clock stops when
the device has finished.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from bench import options_of, say_conditions
from bench.obs_accuracy import Group, fasterprune, in_float32, problem
from bench.random_models import LEVELS


def block_groups(width: int, mlp: int) -> list[Group]:
    """The seven matrices of a LLaMA block."""
    return [
        Group(("q", "k", "v"), (width,) * 3, width),
        Group(("o",), (width,), width),
        Group(("gate", "up"), (mlp,) * 2, width),
        Group(("down",), (width,), mlp),
    ]


def timed(work: Callable[[], Any], device: str = "cpu") -> tuple[Any, float, float]:
    """(result, seconds until the device is done, processor seconds of this process)."""
    _wait(device)
    started, used = time.perf_counter(), time.process_time()
    result = work()
    _wait(device)
    return result, time.perf_counter() - started, time.process_time() - used


def _wait(device: str) -> None:
    import torch

    if device != "cpu":
        torch.cuda.synchronize(device)


def floor(groups: list[Group], levels: int, device: str) -> dict[str, float]:
    """Operations no exact method of this kind avoids, and the speeds this machine does them at.

    Per group: rows x columns^2 for the errors' way to the right (half of 2 rows columns^2, for
    only columns to the right are touched), 2/3 columns^3 for the factor.
    """
    import torch
    from scipy.linalg import get_lapack_funcs

    from efficientllava.kernels.hessian import inverse_factor

    updates = sum(levels * sum(g.rows) * g.columns**2 for g in groups)
    factors = sum(2 / 3 * g.columns**3 for g in groups)
    wide = 3072 if device == "cpu" else 8192
    one, other = torch.randn(2, wide, wide, device=device)
    multiply = min(timed(lambda: one @ other, device)[1] for _ in range(5))
    size = min(4096, max(g.columns for g in groups))
    matrix = torch.eye(size, device=device).mul_(2.0).add_(0.1 / size)
    if device == "cpu":
        potrf, trtri = get_lapack_funcs(("potrf", "trtri"), (matrix.numpy(),))
        factor = min(timed(lambda: trtri(potrf(matrix.numpy().T)[0]))[1] for _ in range(3))
    else:
        work = partial(inverse_factor, matrix)
        factor = min(timed(work, device)[1] for _ in range(3))
    gemm, lapack = 2 * wide**3 / multiply, 2 / 3 * size**3 / factor
    return {
        "update_tflop": updates / 1e12,
        "factor_tflop": factors / 1e12,
        "gemm_gflops": gemm / 1e9,
        "lapack_gflops": lapack / 1e9,
        "floor_s": updates / gemm + factors / lapack,
    }


def compared(ours: Any, theirs: Any, weight: Any, matrix: Any) -> dict[str, float]:
    """Share of equal masks, and the relative output errors of both.

    Float32 products are good enough: their errors are off by 4e-8 at most (bench obs_accuracy).
    """
    from efficientllava.kernels.hessian import relative_error

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
    parser.add_argument("--device", default="cpu", help="or cuda, cuda:1: engine and reference")
    parser.add_argument("--kernel", default="auto", help="of the engine, as obs.kernel")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=1, help="of the engine; medians")
    parser.add_argument("--groups", nargs="+", help="of q, o, gate, down: only these inputs")
    parser.add_argument(
        "--exact", action="store_true", help="errors against those with a factor made in float64"
    )
    parser.add_argument(
        "--reference-levels", type=int, help="run the reference at this many levels, extrapolate"
    )
    arguments = options_of(parser)

    import torch

    from efficientllava.kernels.hessian import inverse_factor
    from efficientllava.kernels.obs import prune_levels
    from efficientllava.kernels.precision import full_float32

    groups = [
        group
        for group in block_groups(arguments.width, arguments.mlp)
        if not arguments.groups or group.names[0] in arguments.groups
    ]
    device = arguments.device
    card = {} if device == "cpu" else {"device": torch.cuda.get_device_name(device)}
    say_conditions(arguments, **card)
    small = problem(Group(("w",), (16,), 64), 0, device)
    prune_levels(small[0], inverse_factor(small[1]), [0.5])  # compiled once, kept on disk
    with full_float32():
        measure(groups, arguments)
    print(f"load average after: {os.getloadavg()[0]:.2f}")


def measure(groups: list[Group], arguments: argparse.Namespace) -> None:
    """Measure every group and print the tables."""
    device = arguments.device
    bound = floor(groups, len(arguments.levels), device)
    print(json.dumps({key: round(value, 3) for key, value in bound.items()}), flush=True)

    print(
        "| input | matrices | engine s | of it factor s | reference s | ratio | processor ratio "
        "| peak GiB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    total = {"engine": 0.0, "reference": 0.0, "engine_cpu": 0.0, "reference_cpu": 0.0}
    rows, runs = [], 0
    for seed, group in enumerate(groups):
        weights, matrix = problem(group, seed, device)
        ours, engine, engine_cpu, factor, peak = run_engine(weights, matrix, arguments)
        spent = spent_cpu = 0.0
        at = arguments.levels[: arguments.reference_levels]
        exact = exact_errors(weights, matrix, arguments) if arguments.exact else None
        for index, (name, weight, solutions) in enumerate(
            zip(group.names, weights, ours, strict=True)
        ):
            for number, (level, solution) in enumerate(zip(at, solutions, strict=False)):
                work = partial(fasterprune, weight, matrix, level)
                if device != "cpu" and not runs:
                    work()  # the first run loads libraries
                tries = [timed(work, device) for _ in range(1 if device == "cpu" else 3)]
                runs += len(tries)
                spent += median(took for _, took, _ in tries)
                spent_cpu += median(took for _, _, took in tries)
                row = compared(solution, tries[0][0], weight, matrix)
                if exact is not None:
                    row["exact"] = exact[index][number]
                rows.append((name, level, row))
                del tries
        scale = len(arguments.levels) / len(at)
        for key, value in (
            ("engine", engine),
            ("reference", spent * scale),
            ("engine_cpu", engine_cpu),
            ("reference_cpu", spent_cpu * scale),
        ):
            total[key] += value
        print(
            f"| {group.columns} | {', '.join(group.names)} | {engine:.3f} | {factor:.3f} "
            f"| {spent * scale:.2f} | {spent * scale / engine:.1f} "
            f"| {spent_cpu * scale / engine_cpu:.1f} | {peak} |",
            flush=True,
        )
        del ours, weights, matrix
    print(
        f"| all | {sum(len(g.names) for g in groups)} | {total['engine']:.3f} | "
        f"| {total['reference']:.2f} | {total['reference'] / total['engine']:.1f} "
        f"| {total['reference_cpu'] / total['engine_cpu']:.1f} | |"
    )
    print(
        f"reference runs measured: {runs}; floor reached: {bound['floor_s'] / total['engine']:.2f}"
    )
    titles = ["matrix", "level", "same mask", "output error", "reference's", "relative difference"]
    titles += ["ours to exact", "reference to exact"] if arguments.exact else []
    print(f"| {' | '.join(titles)} |")
    print("|---" * len(titles) + "|")
    for name, level, row in rows:
        difference = row["error"] / row["reference_error"] - 1
        line = (
            f"| {name} | {level} | {row['same_mask']:.7f} | {row['error']:.6g} "
            f"| {row['reference_error']:.6g} | {difference:+.2e} |"
        )
        if arguments.exact:
            both = (row[key] / row["exact"] - 1 for key in ("error", "reference_error"))
            line += "".join(f" {share:+.2e} |" for share in both)
        print(line)


def exact_errors(
    weights: list[Any], matrix: Any, arguments: argparse.Namespace
) -> list[list[float]]:
    """[matrix][level]: output errors with a factor made in float64, then rounded; not timed."""
    import torch

    from efficientllava.kernels.hessian import inverse_factor, relative_errors
    from efficientllava.kernels.obs import prune_levels

    factor = in_float32(inverse_factor(matrix.double(), dtype=torch.float64))
    solutions = prune_levels(weights, factor, arguments.levels, kernel=arguments.kernel)
    return [
        relative_errors(solution, w, matrix) for solution, w in zip(solutions, weights, strict=True)
    ]


def run_engine(
    weights: list[Any], matrix: Any, arguments: argparse.Namespace
) -> tuple[Any, float, float, float, str]:
    """Medians over the repetitions.

    Returns:
        The solutions, seconds, processor seconds, seconds of the factor, and peak device memory.
    """
    import torch

    from efficientllava.kernels.hessian import inverse_factor
    from efficientllava.kernels.obs import prune_levels

    device = arguments.device
    if device != "cpu":
        prune_levels(weights, inverse_factor(matrix), arguments.levels, kernel=arguments.kernel)
        torch.cuda.reset_peak_memory_stats(device)
    seconds, factors, processor, ours = [], [], [], None
    for _ in range(arguments.repetitions):
        ours = None  # no second copy of the solutions
        factor, first, first_cpu = timed(partial(inverse_factor, matrix), device)
        prune = partial(prune_levels, weights, factor, arguments.levels, kernel=arguments.kernel)
        ours, second, second_cpu = timed(prune, device)
        seconds.append(first + second)
        factors.append(first)
        processor.append(first_cpu + second_cpu)
    peak = "" if device == "cpu" else f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f}"
    return ours, median(seconds), median(processor), median(factors), peak
