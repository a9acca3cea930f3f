"""Pruning a whole model block by block with a policy, and the record of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from efficientllava.calibration.block_walk import GroupHessian, block_walk
from efficientllava.data.proxy import ProxyData
from efficientllava.database.solutions import Database, level_key
from efficientllava.errors import UserError
from efficientllava.finite import all_finite
from efficientllava.kernels.hessian import InverseFactor, inverse_factor, relative_error
from efficientllava.kernels.masks import magnitude, wanda, zeros_at
from efficientllava.kernels.obs import prune
from efficientllava.models.families import Adapter, Matrix, replace_weights
from efficientllava.parameters import ObsParameters
from efficientllava.progress import Event, Progress, silent
from efficientllava.pruning.refine import refine

WITHOUT_CALIBRATION = ("magnitude", "none")
"""Criteria that look at weights alone."""

Policy = Mapping[str, float]
"""The share of zeros of each prunable matrix, by name."""


def prune_model(  # noqa: PLR0913 each one decides the weights or reports on them
    adapter: Adapter,
    proxy: ProxyData,
    criterion: str,
    policy: Policy,
    parameters: ObsParameters,
    progress: Progress = silent,
    refinement: str = "none",
    importance: Mapping[str, torch.Tensor] | None = None,
    finished: Callable[[int], None] = lambda block: None,
) -> list[dict[str, Any]]:
    """Prune a model in place, each block calibrated on the outputs of the pruned blocks before it.

    Args:
        criterion: "obs", "wanda", or what needs no calibration data and walks none: "magnitude",
            "none".
        policy: ratio of every prunable matrix.
        refinement: with "obs", how kept weights are solved again: "none", "least_squares" or
            "admm".
        importance: with "obs", of each matrix's rows [out], by name; None counts all rows alike.
        finished: called with each block that is pruned, of a criterion without calibration data; a
            walk of calibration data takes its blocks off the memory itself.

    Returns:
        One row per matrix: name, block, level, size, zeros, already_zero (zero before, or fed by
        a dead input), relative_error (None where no calibration data was walked), norm_ratio;
        `few_tokens` where an expert was reached by too few of them (`GroupHessian.few_tokens`).

    Raises:
        UserError: a matrix of the model has no ratio; a Hessian is not positive definite.
    """
    missing = [matrix.name for matrix in adapter.matrices if matrix.name not in policy]
    if missing:
        raise UserError(f"the policy has no ratio for {missing[0]} ({len(missing)} in all)")
    if criterion in WITHOUT_CALIBRATION:
        return _prune_by_weights(adapter, criterion, policy, parameters, progress, finished)
    rows: list[dict[str, Any]] = []
    walk = block_walk(adapter, proxy, parameters)
    total = len(adapter.blocks)
    for block in range(total):
        pruned: list[tuple[Matrix, torch.Tensor]] = []
        for group in walk.hessians(block, getattr(torch, parameters.precision)):
            factor = _factor(group, parameters) if criterion == "obs" else None
            for matrix in group.matrices:
                level = policy[matrix.name]
                counts = None if importance is None else importance[matrix.name]
                new = _pruned(
                    matrix, group, factor, criterion, level, parameters, refinement, counts
                )
                rows.append(_row(matrix, block, level, new, group, factor))
                pruned.append((matrix, new))
        # all Hessians of a block are taken before any of its matrices changes (as SparseGPT does)
        replace_weights(pruned)
        if block + 1 < total:
            walk.advance(block)
        progress(Event("block", block + 1, total))
    return rows


def _row(
    matrix: Matrix,
    block: int,
    level: float,
    new: torch.Tensor,
    group: GroupHessian,
    factor: InverseFactor | None,
) -> dict[str, Any]:
    """The record of a matrix that is not replaced yet."""
    dense = matrix.weight
    error = relative_error(new, dense, group.hessian)
    already = dense == 0
    if factor is not None:
        already |= factor.dead
    row = matrix_row(matrix.name, block, level, dense, new, error, int(already.sum()))
    return row | group.few_tokens


def _factor(group: GroupHessian, parameters: ObsParameters) -> InverseFactor:
    hessian = group.hessian
    return inverse_factor(
        hessian, parameters.damping, group.name, group.tokens, dtype=hessian.dtype
    )


def _pruned(
    matrix: Matrix,
    group: GroupHessian,
    factor: InverseFactor | None,
    criterion: str,
    level: float,
    parameters: ObsParameters,
    refinement: str,
    importance: torch.Tensor | None,
) -> torch.Tensor:
    """The new weight [out, in] of one matrix."""
    dense = matrix.weight
    if factor is not None:
        new = prune(
            dense,
            factor,
            level,
            parameters.block_size,
            parameters.group_size,
            parameters.kernel,
            importance,
        )
        if refinement != "none":
            new = refine(dense, new, group.hessian, refinement)
        return new
    if criterion == "wanda":
        # H = (2/n) X X^T: its diagonal holds the squared norms of the inputs
        return wanda(dense, group.hessian.diagonal().sqrt(), level, parameters.group_size)
    raise ValueError(f"no criterion {criterion!r} of single matrices")


def _prune_by_weights(
    adapter: Adapter,
    criterion: str,
    policy: Policy,
    parameters: ObsParameters,
    progress: Progress,
    finished: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Prune every matrix by its own weights, a block at a time; nothing runs through the model."""
    rows: list[dict[str, Any]] = []
    total = len(adapter.blocks)
    for block in range(total):
        for matrix in (matrix for group in adapter.of_block(block) for matrix in group):
            level, dense = policy[matrix.name], matrix.weight
            new = dense.clone()
            if criterion == "magnitude":
                new = magnitude(dense, level, parameters.group_size)
            already = int((dense == 0).sum())
            rows.append(matrix_row(matrix.name, block, level, dense, new, None, already))
            matrix.replace(new)
        finished(block)
        progress(Event("block", block + 1, total))
    return rows


def stitch_model(
    adapter: Adapter,
    database: Database,
    policy: Policy,
    finished: Callable[[int], None] = lambda block: None,
) -> list[dict[str, Any]]:
    """Replace every prunable matrix, in place, by its solution in the database.

    Args:
        finished: called with a block when all matrices up to it are replaced.

    Returns:
        Rows as `prune_model`; relative errors are those of the dense calibration pass.
    """
    rows = []
    for block in range(len(adapter.blocks)):
        stitched = []
        for matrix in (matrix for group in adapter.of_block(block) for matrix in group):
            level = policy[matrix.name]
            new = database.solution(matrix.name, level)
            record = database.manifest["matrices"][matrix.name]
            error = record["levels"][level_key(level)]["relative_error"]
            already = record["already_zero"]
            row = matrix_row(matrix.name, block, level, matrix.weight, new, error, already)
            few = {key: record[key] for key in ("few_tokens",) if key in record}
            rows.append(row | few)
            stitched.append((matrix, new))
        replace_weights(stitched)
        finished(block)
    return rows


def matrix_row(
    name: str,
    block: int,
    level: float,
    dense: torch.Tensor,
    new: torch.Tensor,
    error: float | None,
    already_zero: int,
) -> dict[str, Any]:
    """The record of one pruned matrix; its relative output error is None where not measured."""
    norm = float(dense.double().norm())
    return {
        "name": name,
        "block": block,
        "level": level,
        "size": new.numel(),
        "zeros": int((new == 0).sum()),
        "already_zero": already_zero,
        "relative_error": error,
        "norm_ratio": float(new.double().norm()) / norm if norm > 0 else 1.0,
    }


def achieved_sparsity(rows: Sequence[Mapping[str, Any]]) -> float:
    """The share of zeros in all prunable matrices together."""
    return sum(row["zeros"] for row in rows) / sum(row["size"] for row in rows)


def verify(
    adapter: Adapter,
    rows: Sequence[Mapping[str, Any]],
    weight_of: Callable[[Matrix], torch.Tensor] = lambda matrix: matrix.weight,
    rounded: bool = False,
) -> None:
    """Check a pruned model against its record: round(level * size) zeros in every matrix.

    More are allowed only where weights were zero before or are fed by dead inputs.

    Args:
        rounded: weights were rounded to int8 since, which makes further zeros.

    Raises:
        UserError: a matrix has another number of zeros than recorded or asked for, or holds NaN
            or inf, or is missing from the record.
    """
    recorded = {row["name"]: row for row in rows}
    for matrix in adapter.matrices:
        if matrix.name not in recorded:
            raise UserError("not in the record", where=matrix.name)
        row = recorded[matrix.name]
        weight = weight_of(matrix)
        zeros = int((weight == 0).sum())
        if rounded:
            zeros = min(zeros, row["zeros"])
        expected = zeros_at(row["level"], matrix.size)
        if not all_finite(weight):
            raise UserError("holds NaN or inf after pruning", where=matrix.name)
        if zeros != row["zeros"] or not expected <= zeros <= expected + row["already_zero"]:
            raise UserError(
                f"has {zeros} zeros; its record says {row['zeros']}, its policy {expected}",
                where=matrix.name,
            )
