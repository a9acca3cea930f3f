"""The same ratio for every matrix."""

from __future__ import annotations

from efficientllava.allocation.context import Allocation, Context
from efficientllava.models.checkpoint import skeleton
from efficientllava.models.families import adapter_for


def uniform(context: Context) -> Allocation:
    """Every matrix at the target ratio."""
    names = [matrix.name for matrix in adapter_for(skeleton(context.model)).matrices]
    policy = dict.fromkeys(names, context.ratio)
    return Allocation(policy, "uniform", summary={"mean_sparsity": context.ratio})
