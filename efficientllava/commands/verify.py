"""The command `efficientllava verify`: a pruned checkpoint against its own record."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field

from efficientllava.errors import UserError
from efficientllava.models.checkpoint import load_model
from efficientllava.models.families import adapter_for
from efficientllava.pruning import sequential
from efficientllava.pruning.structured import structured
from efficientllava.reading import checked, read_json
from efficientllava.sparse.record import packed_settings

RECORD = "pruning.json"
MOST = 2**48


class _Row(BaseModel):
    """What is recorded of a matrix."""

    name: str
    level: float = Field(ge=0.0, le=1.0)
    size: int = Field(ge=1, le=MOST)
    zeros: int = Field(ge=0, le=MOST)
    already_zero: int = Field(ge=0, le=MOST)


class _Structure(BaseModel):
    """What is recorded of removed parts."""

    dense_weights: int = Field(ge=1, le=MOST)
    kept_blocks: list[int] | None = None


class _Record(BaseModel):
    """What is read of pruning.json."""

    method: str
    ratio: float = Field(ge=0.0, le=1.0)
    matrices: list[_Row] = Field(min_length=1)
    policy: dict[str, float]
    structure: _Structure | None = None


def verify(folder: Path) -> str:
    """Check zeros, sizes and finite weights; returns what was found, for a terminal.

    Raises:
        UserError: the record is damaged or missing, the checkpoint cannot be loaded, or it is not
            what the record says.
    """
    file = folder / RECORD
    content = read_json(file)
    record = checked(content, _Record, str(file), "only pruned checkpoints have such a record")
    rows = content["matrices"]
    if {row.name: row.level for row in record.matrices} != record.policy:
        raise UserError("its rows do not follow its policy", where=str(file))
    adapter = adapter_for(load_model(folder))
    sizes = {matrix.name: matrix.size for matrix in adapter.matrices}
    for row in record.matrices:
        if sizes.get(row.name) != row.size:
            problem = f"{row.name} has {row.size} weights in its row, {sizes.get(row.name)} here"
            raise UserError(problem, str(file))
    name = f"{record.method} at {record.ratio:g}"
    if (parts := content.get("structure")) is not None:
        structured.verify_structure(adapter, rows, parts)
        share = structured.removed_share(rows, parts)
        return (
            f"{folder}: {name}, {share:.4%} of the decoder's weights are gone, "
            f"{len(adapter.blocks)} blocks with {len(rows)} matrices of the recorded sizes, "
            "all weights finite"
        )
    packed = packed_settings(folder)
    sequential.verify(adapter, rows, rounded=packed is not None and bool(packed.errors))
    share = sequential.achieved_sparsity(rows)
    return (
        f"{folder}: {name}, {len(rows)} matrices with the zeros of their policy "
        f"({share:.4%} of the weights), all weights finite"
    )
