"""OBS of one decoder block against its width: seconds, peak memory, fitted exponents.

    python -m bench growth                          # widths 256, 512, 1024, 2048; 5 levels

Every size runs in a process of its own (peak resident memory is the process's). Beside what was
measured stands what the formulas of docs/internal/performance.md say.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Sequence

from bench import options_of
from bench.obs import block_groups, timed
from bench.obs_accuracy import Group, problem
from bench.random_models import LEVELS


def operations(width: int, mlp: int, levels: int) -> float:
    """Products and sums of the updates without zeros' savings, and of the factors."""
    groups = block_groups(width, mlp)
    updates = sum(levels * sum(g.rows) * g.columns**2 for g in groups)
    return updates + sum(2 / 3 * g.columns**3 for g in groups)


def peak_bytes(width: int, mlp: int, levels: Sequence[float]) -> float:
    """The largest group: weights, solutions, the stack and scratch of a batch, Hessian and factor.

    Scratch is a block's keys and four blocks' lists of errors.
    """
    import torch

    from efficientllava.kernels.cpu.sections import Section, batches_of, bundles_of

    largest = 0.0
    for group in block_groups(width, mlp):
        weights = [torch.empty(rows, group.columns, device="meta") for rows in group.rows]
        sections = [Section(weight, (), 0, level) for weight in weights for level in levels]
        bundles = [[sections[index] for index in bundle] for bundle in bundles_of(sections)]
        batch = max(
            sum(len(section.weight) for bundle in batch for section in bundle)
            for batch in batches_of(bundles)
        )
        matrices = (1 + len(levels)) * sum(group.rows) * group.columns
        scratch = batch * (group.columns + 6 * 128)
        largest = max(largest, 4.0 * (matrices + scratch + 2 * group.columns**2))
    return largest


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of ln value over ln size by least squares."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def measure(width: int, mlp: int) -> dict[str, float]:
    """Prune one block in this process."""
    from efficientllava.kernels.hessian import inverse_factor
    from efficientllava.kernels.obs import prune_levels

    weights, matrix = problem(Group(("w",), (64,), 192), 0)
    prune_levels(weights, inverse_factor(matrix), [0.5])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = processor = 0.0
    for seed, group in enumerate(block_groups(width, mlp)):
        weights, matrix = problem(group, seed)
        factor, first, first_cpu = timed(lambda m=matrix: inverse_factor(m))
        _, second, second_cpu = timed(lambda w=weights, f=factor: prune_levels(w, f, LEVELS))
        seconds, processor = seconds + first + second, processor + first_cpu + second_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "processor": processor, "peak": 1024.0 * (peak - before)}


def main() -> None:
    """Measure every size in its own process, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = options_of(parser)
    if arguments.one:
        print(json.dumps(measure(arguments.one, _mlp(arguments.one))))
        return
    rows = []
    for width in arguments.widths:
        command = [sys.executable, "-m", "bench", "growth", "--one", str(width)]
        command += ["--threads", str(arguments.threads)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows.append(json.loads(printed.splitlines()[-1]))
    print(f"load average {os.getloadavg()[0]:.2f}, threads {arguments.threads}")
    print("| width | MLP | seconds | processor s | GFLOP/s | peak MiB | by formula MiB |")
    print("|---|---|---|---|---|---|---|")
    for width, row in zip(arguments.widths, rows, strict=True):
        speed = operations(width, _mlp(width), len(LEVELS)) / row["processor"] / 1e9
        formula = peak_bytes(width, _mlp(width), LEVELS) / 2**20
        print(
            f"| {width} | {_mlp(width)} | {row['seconds']:.2f} | {row['processor']:.2f} "
            f"| {speed:.0f} | {row['peak'] / 2**20:.0f} | {formula:.0f} |"
        )
    for key in ("processor", "peak"):
        print(f"exponent of {key}: {exponent(arguments.widths, [row[key] for row in rows]):.2f}")


def _mlp(width: int) -> int:
    """LLaMA's proportion, 11008 / 4096."""
    return width * 43 // 16
