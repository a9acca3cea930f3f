"""The solutions of a finished database, opened: memory-mapped, read when they are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from efficientllava.database import storage
from efficientllava.errors import UserError
from efficientllava.files import file_digest, load_tensors, read_json

MANIFEST = "manifest.json"


def block_file(block: int) -> str:
    """Name of a block's file of solutions."""
    return f"block-{block:03d}.safetensors"


def level_key(level: float) -> str:
    """A level as it is written in keys: four decimals."""
    return f"{level:.4f}"


@dataclass(frozen=True)
class Database:
    """A finished database; tensors are memory-mapped and read when they are used.

    Attributes:
        manifest: of `build_database`.
        tensors: of each solution [out, in] as `storage.stored` returns it, by "NAME@LEVEL".
    """

    manifest: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    def solution(self, name: str, level: float) -> torch.Tensor:
        """The OBS solution [out, in] of a matrix at a level."""
        size = self.manifest["matrices"][name]["size"]
        return storage.restored(self.tensors, f"{name}@{level_key(level)}", size)

    def put(self, name: str, level: float, weight: torch.Tensor) -> None:
        """Copy the solution of a matrix at a level into `weight` [out, in]."""
        storage.restore_into(self.tensors, f"{name}@{level_key(level)}", weight)

    def norm_ratio(self, name: str, level: float) -> float:
        """||W^_i||_F / ||W_i||_F of equation (3)."""
        record = self.manifest["matrices"][name]
        norm = record["norm"]
        return float(record["levels"][level_key(level)]["norm"] / norm) if norm > 0 else 1.0


def open_database(
    folders: Path | Sequence[Path], levels: Sequence[float] = (), check: bool = False
) -> Database:
    """Open a finished database.

    Args:
        folders: its folder; or several, which hold different levels of the same matrices.
        levels: those that will be needed.
        check: read every file and compare its digest with the manifest's.

    Raises:
        UserError: a file is missing or damaged, or a level is not in it.
    """
    parts = [folders] if isinstance(folders, Path) else list(folders)
    opened = [_open_part(part, check) for part in parts]
    manifest, tensors = opened[0].manifest, opened[0].tensors
    for other in opened[1:]:
        manifest["levels"] = sorted({*manifest["levels"], *other.manifest["levels"]})
        for name, record in other.manifest["matrices"].items():
            manifest["matrices"][name]["levels"] |= record["levels"]
        tensors |= other.tensors
    missing = [level for level in levels if round(level, 4) not in manifest["levels"]]
    if missing:
        raise UserError(
            f"levels {missing} are not in the database (it has {manifest['levels']})",
            where=", ".join(map(str, parts)),
            remedy="build the database again for these ratios and offsets",
        )
    return Database(manifest, tensors)


def _open_part(folder: Path, check: bool) -> Database:
    manifest = read_json(folder / MANIFEST)
    tensors: dict[str, torch.Tensor] = {}
    for name, digest in manifest["files"].items():
        tensors.update(load_tensors(folder / name))
        if check and file_digest(folder / name) != digest:
            raise UserError(
                "is not the file that was written",
                where=str(folder / name),
                remedy="build the database again",
            )
    return Database(manifest, tensors)
