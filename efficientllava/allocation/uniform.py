"""The same ratio for every matrix."""

from __future__ import annotations

from pathlib import Path

from efficientllava.allocation.context import Allocation, Context
from efficientllava.files import read_json
from efficientllava.models.source import MATRICES


def uniform(context: Context) -> Allocation:
    """Every matrix at the target ratio."""
    policy = dict.fromkeys(matrix_names(context.model), context.ratio)
    return Allocation(policy, "uniform", summary={"mean_sparsity": context.ratio})


def matrix_names(folder: Path) -> list[str]:
    """The names of the prunable matrices, in the order of the blocks.

    Raises:
        UserError: as `check_checkpoint`, where the model has to be asked.
    """
    if (folder / MATRICES).is_file():
        return list(read_json(folder / MATRICES))
    # seconds of imports
    from efficientllava.models.checkpoint import skeleton
    from efficientllava.models.families import adapter_for

    return [matrix.name for matrix in adapter_for(skeleton(folder)).matrices]
