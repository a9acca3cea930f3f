"""Optimal Brain Surgeon by columns (SparseGPT, Frantar & Alistarh 2023): one matrix, all levels.

Rows are independent given the factor of the inverse Hessian, so all matrices that read the same
input, at all ratios, are stacked as rows and go through the column loop once. The eager path is
the reference and runs on every device; the compiled one (`obs_compiled`) gives the same bits on a
CPU, the one in Triton (`obs_triton`) the same up to the order of additions on a GPU.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Literal

import torch

from efficientllava.errors import UserError
from efficientllava.kernels.hessian import InverseFactor
from efficientllava.kernels.masks import (
    check_group_size,
    in_dtype,
    smallest,
    smallest_in_groups,
    zeros_at,
    zeros_per_group,
)
from efficientllava.kernels.plan import Plan
from efficientllava.kernels.precision import full_float32

Kernel = Literal["auto", "eager", "compiled", "triton"]

LEAST_SCALE = 0.05
"""Of a row, beside a mean of 1: no row is given up for a gradient that happened to be small."""
EAGER_UP_TO = 2**14
"""Weights of a matrix up to which "auto" on a CPU takes the eager path: compiling takes seconds."""


def prune(
    weight: torch.Tensor,
    factor: InverseFactor,
    ratio: float,
    block_size: int = 128,
    group_size: int | None = None,
    kernel: Kernel = "auto",
    importance: torch.Tensor | None = None,
) -> torch.Tensor:
    """Prune one matrix [out, in] to one ratio; see `prune_levels`."""
    rows = None if importance is None else [importance]
    return prune_levels([weight], factor, [ratio], block_size, group_size, kernel, rows)[0][0]


@full_float32()
def prune_levels(
    weights: Sequence[torch.Tensor],
    factor: InverseFactor,
    levels: Sequence[float],
    block_size: int = 128,
    group_size: int | None = None,
    kernel: Kernel = "auto",
    importance: Sequence[torch.Tensor] | None = None,
) -> list[list[torch.Tensor]]:
    """Prune matrices that share an input to several ratios in one pass (method.md section 2).

    Columns go from left to right in blocks. At a block's start the mask takes the smallest
    w^2 / U_jj^2 (n:m: at each group's start, within the group); the error (w_j - w^_j) / U_jj is
    spread to the columns on its right, inside the block at once, past it lazily.

    Args:
        weights: matrices [out_i, in].
        factor: of the Hessian of their input.
        levels: ratios in [0, 1].
        group_size: m of an n:m pattern (n = ratio * m); None for unstructured.
        kernel: "eager" is plain torch operations on any device; "compiled" gives the same bits on
            a CPU in float32 by torch.get_num_threads() threads; "triton" is for CUDA in float32
            and group sizes 2, 4, 8, 16, 32; "auto" takes the fastest that can; for
            matrices of up to `EAGER_UP_TO` weights on a CPU that is "eager".
        importance: r [out_i] of each matrix's rows: masks then take the smallest r w^2 / U_jj^2.
            What minimises tr(R dW H dW^T) for R = diag(r) is OBS of R^(1/2) W, scaled back.

    Returns:
        [matrix][level] -> [out_i, in] in the matrix's dtype, with exactly round(ratio * numel)
        pruned weights (n in every group). Weights of dead inputs are zero and count first; only
        if they alone exceed the ratio are there more zeros.

    Raises:
        UserError: the block size or the columns are not a multiple of `group_size`, or a ratio is
            no whole number of zeros per group; a kernel is asked for where it cannot run.
    """
    dtypes = [weight.dtype for weight in weights]
    scales = None if importance is None else [_row_scale(each, factor) for each in importance]
    if scales is not None:
        weights = [
            weight.to(scale.dtype) * scale for weight, scale in zip(weights, scales, strict=True)
        ]
    plan = _plan(weights, levels, factor.dead.cpu(), block_size, group_size)
    solutions = _solutions(weights, levels, factor, plan, kernel)
    if scales is not None:
        for number, solution in enumerate(solutions):
            solution.div_(scales[number // len(levels)])  # in place: there may be GBs of them
    return [
        [
            in_dtype(solutions[index * len(levels) + position], dtype).contiguous()
            for position in range(len(levels))
        ]
        for index, dtype in enumerate(dtypes)
    ]


def _solutions(
    weights: Sequence[torch.Tensor],
    levels: Sequence[float],
    factor: InverseFactor,
    plan: Plan,
    kernel: Kernel,
) -> list[torch.Tensor]:
    """The solutions [matrix x level] by the kernel that is asked for."""
    largest = max(weight.numel() for weight in weights)
    chosen = _kernel_for(kernel, factor.upper, plan.group_size, largest)
    if chosen == "compiled":
        return _prune_compiled(weights, levels, factor, plan)
    if chosen == "triton":
        # needs triton
        from efficientllava.kernels.triton.obs_triton import Blocks, prune_stack

        return prune_stack(Blocks(weights, len(levels), factor.upper, factor.dead, plan))
    return _prune_stack(weights, len(levels), factor, plan)


def _row_scale(importance: torch.Tensor, factor: InverseFactor) -> torch.Tensor:
    """r^(1/2) [out, 1], 1 in the mean of squares; all 1 where no row has any importance."""
    rows = importance.to(factor.upper.device, torch.float64)
    mean = rows.mean()
    rows = rows / mean if mean > 0 else torch.ones_like(rows)
    return rows.sqrt().clamp_(min=LEAST_SCALE).to(factor.upper.dtype)[:, None]


def _plan(
    weights: Sequence[torch.Tensor],
    levels: Sequence[float],
    dead: torch.Tensor,
    block_size: int,
    group_size: int | None,
) -> Plan:
    """How matrices are pruned to several ratios; raises as `prune_levels`."""
    columns = weights[0].shape[1]
    heights = [weight.shape[0] for weight in weights for _ in levels]
    counts = [0] * len(heights)
    if group_size is not None:
        check_group_size(columns, block_size, group_size)
        counts = [zeros_per_group(level, group_size) for _ in weights for level in levels]
    quotas = [
        quotas_of_blocks(weight.shape[0], level, dead, block_size)
        for weight in weights
        for level in levels
    ]
    starts = [*range(0, columns, block_size), columns]
    return Plan([0, *accumulate(heights)], starts, quotas, counts, group_size)


def _kernel_for(
    kernel: Kernel, upper: torch.Tensor, group_size: int | None, largest: int
) -> Kernel:
    """The kernel that runs: for "auto" the fastest that can, else the one asked for if it can."""
    device, precision = upper.device.type, str(upper.dtype).removeprefix("torch.")
    missing = {"compiled": "", "triton": ""}
    if precision != "float32" or device != "cpu":
        missing["compiled"] = f"works on a CPU in float32, not on {device} in {precision}"
    interpreted = device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if precision != "float32" or not (device == "cuda" or interpreted):
        missing["triton"] = f"works on CUDA in float32, not on {device} in {precision}"
    elif group_size not in (None, 2, 4, 8, 16, 32):
        missing["triton"] = f"has no groups of {group_size} columns, but of 2, 4, 8, 16 and 32"
    elif importlib.util.find_spec("triton") is None:
        missing["triton"] = "needs the package triton: pip install efficientllava[gpu]"
    if kernel == "auto":
        fastest: Kernel = "triton" if device == "cuda" else "compiled"
        small = fastest == "compiled" and largest <= EAGER_UP_TO
        return "eager" if missing[fastest] or small else fastest
    if missing.get(kernel):
        raise UserError(
            f"the {kernel} kernel {missing[kernel]}",
            where="obs.kernel",
            remedy="use obs.kernel: auto",
        )
    return kernel


def _prune_compiled(
    weights: Sequence[torch.Tensor], levels: Sequence[float], factor: InverseFactor, plan: Plan
) -> list[torch.Tensor]:
    """The solutions [matrix x level] by the loops that numba compiles."""
    # needs numba, which loads slowly
    from efficientllava.kernels.cpu.obs_compiled import prune_sections
    from efficientllava.kernels.cpu.sections import Section

    singles = [weight.float().contiguous() for weight in weights]  # one copy for all levels
    stack = [weight for weight in singles for _ in levels]
    densities = [level for _ in weights for level in levels]
    sections = [
        Section(*section)
        for section in zip(stack, plan.quotas, plan.counts, densities, strict=True)
    ]
    threads = torch.get_num_threads()
    return prune_sections(
        sections, factor.upper, factor.dead, plan.starts, plan.group_size, threads
    )


def _prune_stack(
    weights: Sequence[torch.Tensor],
    levels: int,
    factor: InverseFactor,
    plan: Plan,
) -> list[torch.Tensor]:
    """The eager path: the solutions [matrix x level], block of columns by block."""
    # rows side by side, [columns, rows]: one column of all rows is contiguous
    stack = torch.cat([w.to(factor.upper.dtype).T for w in weights for _ in range(levels)], 1)
    stack[factor.dead] = 0.0
    for number, (start, end) in enumerate(pairwise(plan.starts)):
        quotas = [quota[number] for quota in plan.quotas]
        inner, dead = factor.upper[start:end, start:end], factor.dead[start:end]
        errors = _prune_block(stack[start:end], inner, dead, plan, quotas)
        stack[end:].addmm_(factor.upper[start:end, end:].T, errors, alpha=-1.0)
    return [stack[:, top:bottom].T for top, bottom in pairwise(plan.rows)]


def _prune_block(
    block: torch.Tensor,
    upper: torch.Tensor,
    dead: torch.Tensor,
    plan: Plan,
    quotas: Sequence[int],
) -> torch.Tensor:
    """The eager path inside a block [columns, rows], changed in place; returns its errors."""
    sections, group_size = list(pairwise(plan.rows)), plan.group_size
    diagonal = upper.diagonal()
    mask = torch.zeros_like(block, dtype=torch.bool)
    if group_size is None:
        score = (block / diagonal[:, None]).square_().masked_fill_(dead[:, None], -1.0)
        for (top, bottom), quota in zip(sections, quotas, strict=True):
            mask[:, top:bottom] = smallest(score[:, top:bottom].T, quota).T
    errors = torch.empty_like(block)
    for column in range(len(block)):
        if group_size is not None and column % group_size == 0:
            group = slice(column, column + group_size)
            score = (block[group] / diagonal[group, None]).square_()
            score.masked_fill_(dead[group, None], -1.0)
            for (top, bottom), count in zip(sections, plan.counts, strict=True):
                chosen = smallest_in_groups(score[:, top:bottom].T, count, group_size)
                mask[group, top:bottom] = chosen.T
        new = block[column].masked_fill(mask[column] | dead[column], 0.0)
        errors[column] = (block[column] - new) / diagonal[column]
        block[column] = new
        # product and difference are rounded one by one: a fused operation (addr_) would round
        # once in full vector registers and twice in the remainder
        block[column + 1 :] -= torch.outer(upper[column, column + 1 :], errors[column])
    return errors


def quotas_of_blocks(height: int, level: float, dead: torch.Tensor, block_size: int) -> list[int]:
    """Pruned weights per block of columns, so that they add up to round(level * numel).

    Weights of dead inputs are pruned first; the rest is spread in proportion to live columns.

    Args:
        height: rows of the matrix.
        dead: [columns], on the CPU.
    """
    columns = len(dead)
    starts = [*range(0, columns, block_size), columns]
    dead_before = [0, *dead.cumsum(0).tolist()]
    at_starts = [dead_before[start] for start in starts]
    live = columns - at_starts[-1]
    zeros = max(zeros_at(level, height * columns) - height * at_starts[-1], 0)
    cumulative = [
        height * dead_count + (round(zeros * (end - dead_count) / live) if live else 0)
        for end, dead_count in zip(starts, at_starts, strict=True)
    ]
    return [after - before for before, after in pairwise(cumulative)]
