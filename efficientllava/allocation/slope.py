"""Ratios that rise linearly from the first block to the last (ATP, arXiv 2502.14770)."""

from __future__ import annotations

from collections.abc import Sequence

from efficientllava.allocation.by_block import require_free_ratios, shifted_to
from efficientllava.allocation.context import Allocation, Context
from efficientllava.models.checkpoint import skeleton
from efficientllava.models.families import adapter_for


def sloped(context: Context) -> Allocation:
    """From `ratio - slope` at the first block to `ratio + slope` at the last.

    Raises:
        UserError: an n:m pattern is asked for, which fixes every ratio.
    """
    parameters = context.parameters
    require_free_ratios("slope", parameters.obs.named, parameters.obs.group_size)
    adapter = adapter_for(skeleton(context.model))
    sizes = [0] * len(adapter.blocks)
    for matrix in adapter.matrices:
        sizes[matrix.block] += matrix.size
    ratios = linear_ratios(sizes, context.ratio, parameters.allocation.slope)
    policy = {matrix.name: ratios[matrix.block] for matrix in adapter.matrices}
    summary = {
        "mean_sparsity": context.ratio,
        "lowest_ratio": min(policy.values()),
        "highest_ratio": max(policy.values()),
    }
    return Allocation(policy, "slope", summary=summary)


def linear_ratios(sizes: Sequence[int], ratio: float, slope: float) -> list[float]:
    """Ratio of every block: linear from -slope to +slope, shifted so that the mean is exact.

    Args:
        sizes: prunable weights of each block.
        ratio: target mean, weighted by size.
    """
    last = max(len(sizes) - 1, 1)
    raw = [slope * (2 * block / last - 1) if len(sizes) > 1 else 0.0 for block in range(len(sizes))]
    return shifted_to(raw, sizes, ratio)
