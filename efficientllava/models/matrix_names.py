"""The names of a checkpoint's prunable matrices, without loading it where they are written down."""

from __future__ import annotations

from pathlib import Path

from efficientllava.files import read_json

MATRICES = "matrices.json"
"""Beside the weights that the stage `model` wrote: the names of the prunable matrices, in order."""


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
