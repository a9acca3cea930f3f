"""Optimal Brain Surgeon by columns (SparseGPT, Frantar & Alistarh 2023): one matrix, all levels.

Rows are independent given the factor of the inverse Hessian, so all matrices that read the same
input, at all ratios, are stacked as rows and go through the column loop once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from efficientllava.pruning.hessian import InverseFactor
from efficientllava.pruning.masks import (
    check_group_size,
    in_dtype,
    smallest,
    smallest_in_groups,
    zeros_at,
    zeros_per_group,
)


def prune(
    weight: torch.Tensor,
    factor: InverseFactor,
    ratio: float,
    block_size: int = 128,
    group_size: int | None = None,
) -> torch.Tensor:
    """Prune one matrix [out, in] to one ratio; see `prune_levels`."""
    return prune_levels([weight], factor, [ratio], block_size, group_size)[0][0]


def prune_levels(
    weights: Sequence[torch.Tensor],
    factor: InverseFactor,
    levels: Sequence[float],
    block_size: int = 128,
    group_size: int | None = None,
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

    Returns:
        [matrix][level] -> [out_i, in] in the matrix's dtype, with exactly round(ratio * numel)
        pruned weights (n in every group). Weights of dead inputs are zero and count first; only
        if they alone exceed the ratio are there more zeros.

    Raises:
        UserError: the block size or the columns are not a multiple of `group_size`, or a ratio is
            no whole number of zeros per group.
    """
    columns = weights[0].shape[1]
    upper = factor.upper
    sections = [(weight.shape[0], level) for weight in weights for level in levels]
    stack = torch.cat([weight.to(upper.dtype) for weight in weights for _ in levels])
    stack[:, factor.dead] = 0.0
    # each section's mask is chosen in its own rows
    rows = [0]
    for height, _ in sections:
        rows.append(rows[-1] + height)

    if group_size is not None:
        check_group_size(columns, block_size, group_size)
        counts = [zeros_per_group(level, group_size) for _, level in sections]
    starts = list(range(0, columns, block_size)) + [columns]
    quotas = [_quotas(height, level, factor.dead, starts) for height, level in sections]

    for number, (start, end) in enumerate(pairwise(starts)):
        block = stack[:, start:end]
        block_upper = upper[start:end, start:end]
        diagonal = block_upper.diagonal()
        dead = factor.dead[start:end]
        mask = torch.zeros_like(block, dtype=torch.bool)
        if group_size is None:
            score = (block / diagonal).square_().masked_fill_(dead, -1.0)
            for (top, bottom), quota in zip(pairwise(rows), quotas, strict=True):
                mask[top:bottom] = smallest(score[top:bottom], quota[number])
        errors = torch.empty_like(block)
        for column in range(end - start):
            if group_size is not None and column % group_size == 0:
                group = slice(column, column + group_size)
                score = (block[:, group] / diagonal[group]).square_()
                score.masked_fill_(dead[group], -1.0)
                for (top, bottom), count in zip(pairwise(rows), counts, strict=True):
                    mask[top:bottom, group] = smallest_in_groups(
                        score[top:bottom], count, group_size
                    )
            old = block[:, column]
            new = old.masked_fill(mask[:, column] | dead[column], 0.0)
            error = (old - new) / diagonal[column]
            block[:, column + 1 :].addr_(error, block_upper[column, column + 1 :], alpha=-1.0)
            block[:, column] = new
            errors[:, column] = error
        stack[:, end:].addmm_(errors, upper[start:end, end:], alpha=-1.0)

    solutions = [stack[top:bottom] for top, bottom in pairwise(rows)]
    return [
        [
            in_dtype(solutions[index * len(levels) + position], weight.dtype)
            for position in range(len(levels))
        ]
        for index, weight in enumerate(weights)
    ]


def _quotas(height: int, level: float, dead: torch.Tensor, starts: Sequence[int]) -> list[int]:
    """Pruned weights per block of columns, so that they add up to round(level * numel).

    Weights of dead inputs are pruned first; the rest is spread in proportion to live columns.
    """
    dead_before = [int(dead[:end].sum()) for end in starts]
    columns = starts[-1]
    live = columns - dead_before[-1]
    wanted = max(zeros_at(level, height * columns) - height * dead_before[-1], 0)
    cumulative = [
        height * dead_count + (round(wanted * (end - dead_count) / live) if live else 0)
        for end, dead_count in zip(starts, dead_before, strict=True)
    ]
    return [after - before for before, after in pairwise(cumulative)]
