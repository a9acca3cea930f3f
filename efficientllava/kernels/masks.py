"""Masks: exact counts of zeros, selection by a score."""

from __future__ import annotations

import torch

from efficientllava.errors import UserError


def zeros_at(ratio: float, size: int) -> int:
    """round(ratio * size): the zeros of a matrix of `size` weights."""
    return round(ratio * size)


def zeros_per_group(ratio: float, group_size: int) -> int:
    """The zeros in each group of an n:m pattern; the ratio may be rounded to four decimals.

    Raises:
        UserError: the ratio is no whole number of zeros per group.
    """
    zeros = ratio * group_size
    if abs(zeros - round(zeros)) > 5e-5 * group_size + 1e-6:
        raise UserError(
            f"ratio {ratio} is no whole number of zeros in a group of {group_size}",
            where="obs.pattern",
            remedy=f"use a multiple of 1/{group_size}",
        )
    return round(zeros)


def smallest(score: torch.Tensor, count: int) -> torch.Tensor:
    """Mask of exactly `count` entries with the smallest score, the first in order of equal ones.

    Nothing is sorted: the count-th value is found by selection.

    Args:
        score: any shape, finite.

    Returns:
        Boolean mask of the same shape.
    """
    if count <= 0:
        return torch.zeros_like(score, dtype=torch.bool)
    flat = score.flatten()
    limit = flat.kthvalue(count).values
    mask = flat < limit
    equal = (flat == limit).nonzero()[:, 0]
    mask[equal[: count - int(mask.sum())]] = True
    return mask.view(score.shape)


def smallest_in_groups(score: torch.Tensor, count: int, group_size: int) -> torch.Tensor:
    """Mask of exactly `count` entries in every group of consecutive columns, the left of equals.

    An n:m mask, e.g. 2:4. Compiled kernels choose the same: `cpu.column_loop._rank_groups` and
    `triton.triton_kernels`.

    Args:
        score: [rows, columns], columns a multiple of `group_size`.
    """
    rows, columns = score.shape
    groups = score.reshape(rows, columns // group_size, group_size)
    mask = torch.zeros_like(groups, dtype=torch.bool)
    if count > 0:
        order = torch.sort(groups, dim=2, stable=True).indices
        mask.scatter_(2, order[..., :count], True)
    return mask.view(rows, columns)


def check_group_size(columns: int, block_size: int, group_size: int) -> None:
    """Check that no group of an n:m pattern is cut.

    Raises:
        UserError: block size or number of columns is not a multiple of the group size.
    """
    if block_size % group_size:
        raise UserError(
            f"block size {block_size} is not a multiple of the group size {group_size}: "
            "groups of the n:m pattern would be cut",
            where="obs.block_size",
            remedy=f"use a multiple of {group_size}",
        )
    if columns % group_size:
        raise UserError(
            f"a matrix with {columns} columns cannot be cut into groups of {group_size}",
            where="obs.pattern",
            remedy="use an n:m pattern whose m divides the model's widths",
        )


def magnitude(weight: torch.Tensor, ratio: float, group_size: int | None = None) -> torch.Tensor:
    """Prune the smallest |w| of a matrix (or of each group); kept weights stay as they are.

    Args:
        weight: [out, in].

    Returns:
        The pruned matrix [out, in], exactly round(ratio * numel) zeros chosen.
    """
    if group_size is None:
        mask = smallest(weight.abs(), zeros_at(ratio, weight.numel()))
    else:
        check_group_size(weight.shape[1], group_size, group_size)
        count = zeros_per_group(ratio, group_size)
        mask = smallest_in_groups(weight.abs(), count, group_size)
    return weight.masked_fill(mask, 0.0)


def in_dtype(weights: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round weights to a dtype; one that would vanish (below 3e-8 in float16) keeps a tiny value.

    Zeros are counted: there are as many after rounding as before.
    """
    rounded = weights.to(dtype)
    if dtype != weights.dtype and (gone := (rounded == 0) & (weights != 0)).any():
        limits = torch.finfo(dtype)
        tiny = torch.tensor(limits.smallest_normal * limits.eps, dtype=dtype)
        rounded[gone] = torch.copysign(tiny, weights[gone].to(dtype))
    return rounded


def smallest_per_row(score: torch.Tensor, count: int) -> torch.Tensor:
    """Mask of exactly `count` entries, spread evenly over the rows, the smallest of each row.

    Row r gets round((r + 1) count / rows) - round(r count / rows) of them: quotas differ by at
    most one and add up to `count`.

    Args:
        score: [rows, columns], finite.
    """
    rows, _ = score.shape
    stops = torch.tensor([round(row * count / rows) for row in range(rows + 1)])
    quotas = stops.diff().to(score.device)
    ranks = score.argsort(dim=1, stable=True).argsort(dim=1)
    return ranks < quotas[:, None]


def wanda(
    weight: torch.Tensor, norms: torch.Tensor, ratio: float, group_size: int | None = None
) -> torch.Tensor:
    """Prune the smallest |w_ij| * ||x_j||_2 of every output row (Wanda, Sun et al. 2024).

    Kept weights stay as they are. For n:m the comparison is inside groups of m consecutive inputs.

    Args:
        weight: [out, in].
        norms: [in], the norm of each input over the calibration tokens, up to a common factor.

    Returns:
        The pruned matrix [out, in], exactly round(ratio * numel) zeros chosen.
    """
    score = weight.abs().to(norms.dtype) * norms
    if group_size is None:
        mask = smallest_per_row(score, zeros_at(ratio, weight.numel()))
    else:
        check_group_size(weight.shape[1], group_size, group_size)
        mask = smallest_in_groups(score, zeros_per_group(ratio, group_size), group_size)
    return weight.masked_fill(mask, 0.0)
