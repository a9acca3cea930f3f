"""The same ratio for every matrix."""

from __future__ import annotations

from efficientllava.allocation.context import Allocation, Context
from efficientllava.models.source import matrix_names


def uniform(context: Context) -> Allocation:
    """Every matrix at the target ratio."""
    policy = dict.fromkeys(matrix_names(context.model), context.ratio)
    return Allocation(policy, "uniform", summary={"mean_sparsity": context.ratio})
