"""Ratios per block by their outliers (OWL, Yin et al. 2024): a cheap allocation, no search.

A block whose weights meet unusually large activations keeps more of them. Its measure is the
layerwise outlier distribution: the share of |w_ij| * ||x_j||_2 that exceeds M times the block's
mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from efficientllava.allocation.by_block import require_free_ratios, shifted_to
from efficientllava.allocation.context import Allocation, Context
from efficientllava.calibration.block_walk import block_walk
from efficientllava.calibration.opened import block_by_block
from efficientllava.data.proxy import ProxyData
from efficientllava.models.families import Adapter
from efficientllava.parameters import ObsParameters
from efficientllava.progress import Event, Progress, silent


def outliers(context: Context) -> Allocation:
    """OWL's ratios, from one pass of the dense model.

    Raises:
        UserError: as `outlier_policy`; the model does not fit on the device.
    """
    parameters = context.parameters
    with block_by_block(context.model, context.work, context.proxy, parameters.machine) as opened:
        policy, shares = outlier_policy(
            opened.adapter,
            context.proxy,
            context.ratio,
            parameters.obs,
            parameters.allocation.outlier_threshold,
            parameters.allocation.outlier_spread,
            context.progress,
        )
    summary = {
        "mean_sparsity": context.ratio,
        "lowest_ratio": min(policy.values()),
        "highest_ratio": max(policy.values()),
        "lowest_outlier_share": min(shares),
        "highest_outlier_share": max(shares),
    }
    return Allocation(policy, "outliers", summary=summary)


def outlier_share(scores: Sequence[torch.Tensor], threshold: float) -> float:
    """The share of all scores of a block that exceed `threshold` times their mean.

    Args:
        scores: |W| * ||x|| of each matrix of the block, [out, in].
        threshold: M of the paper.
    """
    count = sum(score.numel() for score in scores)
    mean = sum(float(score.sum(dtype=torch.float64)) for score in scores) / count
    return sum(int((score > threshold * mean).sum()) for score in scores) / count


def ratios_by_outliers(
    shares: Sequence[float], sizes: Sequence[int], ratio: float, spread: float
) -> list[float]:
    """Ratios with the given mean, lower where there are more outliers.

    As in the official code the shares are brought to [0, 2 lambda] and taken off the ratios,
    which are then shifted to the target; the shift here makes the mean over weights exact, with
    every ratio in [0, 1].

    Args:
        shares: `outlier_share` of each block.
        sizes: prunable weights of each block.
        ratio: target mean, weighted by size.
        spread: lambda of the paper: ratios differ by at most 2 lambda.
    """
    low, high = min(shares), max(shares)
    reach = high - low
    raw = [-2 * spread * (share - low) / reach if reach > 0 else 0.0 for share in shares]
    return shifted_to(raw, sizes, ratio)


def outlier_policy(
    adapter: Adapter,
    proxy: ProxyData,
    ratio: float,
    parameters: ObsParameters,
    threshold: float,
    spread: float,
    progress: Progress = silent,
) -> tuple[dict[str, float], list[float]]:
    """OWL's ratio for every prunable matrix: the same inside a block, from one dense pass.

    Returns:
        the policy, and the outlier share of each block.

    Raises:
        UserError: an n:m pattern is asked for, which fixes every ratio.
    """
    require_free_ratios("owl", parameters.named, parameters.group_size)
    shares, sizes = outlier_shares(adapter, proxy, parameters, threshold, progress)
    ratios = ratios_by_outliers(shares, sizes, ratio, spread)
    return {matrix.name: ratios[matrix.block] for matrix in adapter.matrices}, shares


@torch.no_grad()
def outlier_shares(
    adapter: Adapter,
    proxy: ProxyData,
    parameters: ObsParameters,
    threshold: float,
    progress: Progress = silent,
) -> tuple[list[float], list[int]]:
    """The outlier share and the number of prunable weights of every block, from one dense pass."""
    walk = block_walk(adapter, proxy, parameters)
    shares, sizes = [], []
    total = len(adapter.blocks)
    for block in range(total):
        scores = []
        for group in walk.hessians(block, keep_outputs=True):
            norms = group.hessian.diagonal().sqrt()
            scores += [matrix.weight.abs().float() * norms for matrix in group.matrices]
        shares.append(outlier_share(scores, threshold))
        sizes.append(sum(score.numel() for score in scores))
        if block + 1 < total:
            walk.advance(block)
        progress(Event("block", block + 1, total))
    return shares, sizes
