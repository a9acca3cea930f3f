"""Check a folder that this program has written against what it recorded of it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from efficientllava.database.solutions import MANIFEST, open_database
from efficientllava.errors import UserError
from efficientllava.files import DIGESTS, read_sealed, require_sealed
from efficientllava.models.checkpoint import load_model
from efficientllava.models.families import adapter_for
from efficientllava.models.folder_kind import checkpoint_in
from efficientllava.models.weight_files import weight_files
from efficientllava.pruning import sequential
from efficientllava.pruning.structured import structured
from efficientllava.reading import checked, read_json
from efficientllava.sparse.record import packed_settings

RECORD = "pruning.json"
MOST = 2**48


class _Row(BaseModel):
    """What is recorded of a matrix."""

    model_config = ConfigDict(strict=True)
    name: str
    level: float = Field(ge=0.0, le=1.0)
    size: int = Field(ge=1, le=MOST)
    zeros: int = Field(ge=0, le=MOST)
    already_zero: int = Field(ge=0, le=MOST)


class _Structure(BaseModel):
    """What is recorded of removed parts."""

    model_config = ConfigDict(strict=True)
    dense_weights: int = Field(ge=1, le=MOST)
    kept_blocks: list[int] | None = None


class _Record(BaseModel):
    """What is read of pruning.json."""

    model_config = ConfigDict(strict=True)
    method: str
    ratio: float = Field(ge=0.0, le=1.0)
    matrices: list[_Row] = Field(min_length=1)
    policy: dict[str, float]
    structure: _Structure | None = None


def verify(folder: Path) -> str:
    """Check a pruned or a dense checkpoint, an OBS database, or proxy data.

    Of an export its packed checkpoint is meant. Of a pruned checkpoint zeros and sizes are
    counted, too.

    Returns:
        What was found, in words.

    Raises:
        UserError: a file is not as it was written, or not as its record says; nothing is recorded.
    """
    remedy = "name a checkpoint, a database or proxy data that this program has written"
    if not folder.is_dir():
        raise UserError("there is no such folder", where=str(folder), remedy=remedy)
    if not any((folder / name).is_file() for name in (RECORD, MANIFEST, DIGESTS)):
        folder = checkpoint_in(folder)
    if (folder / RECORD).is_file():
        return _verify_pruned(folder)
    if (folder / MANIFEST).is_file():
        return _verify_manifest(folder)
    if not (folder / DIGESTS).is_file():
        if (folder / "config.json").is_file():
            weight_files(folder)
        raise UserError(
            "holds no record to compare with: no pruning.json, digests.json or manifest.json",
            where=str(folder),
            remedy=remedy,
        )
    return f"{folder}: {require_sealed(folder)} files as they were written"


def _verify_manifest(folder: Path) -> str:
    manifest = read_sealed(folder / MANIFEST)
    if "matrices" in manifest:
        opened = open_database(folder, check=True)
        return (
            f"{folder}: {len(manifest['files'])} files with {len(opened.tensors)} tensors "
            "as they were written"
        )
    from efficientllava.data.proxy import load_proxy

    load_proxy(folder)
    return f"{folder}: {len(manifest['files'])} files as they were written"


def _verify_pruned(folder: Path) -> str:
    file = folder / RECORD
    content = read_json(file)
    record = checked(content, _Record, str(file), "name a checkpoint that this program has written")
    rows = content["matrices"]
    if {row.name: row.level for row in record.matrices} != record.policy:
        raise UserError("its rows do not follow its policy", where=str(file))
    adapter = adapter_for(load_model(folder))
    require_sealed(folder)
    sizes = {matrix.name: matrix.size for matrix in adapter.matrices}
    for row in record.matrices:
        if sizes.get(row.name) != row.size:
            problem = f"{row.name} has {row.size} weights in its row, {sizes.get(row.name)} here"
            raise UserError(problem, str(file))
    name = f"{record.method} at {record.ratio}"
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
