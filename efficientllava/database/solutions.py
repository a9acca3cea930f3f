"""The solutions of a finished database, opened: memory-mapped, read when they are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from efficientllava.database import storage
from efficientllava.errors import UserError
from efficientllava.files import DamagedFile, file_digest, load_tensors, read_sealed

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
        unchecked: the file of every tensor whose digest has not been compared yet, by its key.
    """

    manifest: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    unchecked: dict[str, Path] = field(default_factory=dict)

    def solution(self, name: str, level: float) -> torch.Tensor:
        """The OBS solution [out, in] of a matrix at a level.

        Raises:
            UserError: it is not as it was written.
        """
        size = self.manifest["matrices"][name]["size"]
        return storage.restored(self.tensors, self._checked(name, level), size)

    def put(self, name: str, level: float, weight: torch.Tensor) -> None:
        """Copy the solution of a matrix at a level into `weight` [out, in].

        Raises:
            UserError: it is not as it was written.
        """
        storage.restore_into(self.tensors, self._checked(name, level), weight)

    def _checked(self, name: str, level: float) -> str:
        """The key of a solution, after a check of its tensors when they are first used."""
        key = f"{name}@{level_key(level)}"
        for part in (key, key + storage.MASK, key + storage.KEPT):
            self.check(part)
        return key

    def check(self, key: str) -> None:
        """Compare a tensor with its digest in the manifest, unless that has been done.

        Raises:
            UserError: it is not as it was written.
        """
        path = self.unchecked.get(key)
        if path is None:
            return
        if storage.tensor_digest(self.tensors[key]) != self.manifest["tensors"][key]:
            raise DamagedFile(path)
        self.unchecked.pop(key, None)

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
        check: read every file now and compare its digest with the manifest's. Otherwise each
            tensor is compared when it is first used.

    Raises:
        UserError: a file is missing or damaged, or a level is not in it.
    """
    parts = [folders] if isinstance(folders, Path) else list(folders)
    opened = [_open_part(part, check) for part in parts]
    manifest, tensors, unchecked = opened[0].manifest, opened[0].tensors, opened[0].unchecked
    for other in opened[1:]:
        manifest["levels"] = sorted({*manifest["levels"], *other.manifest["levels"]})
        for name, record in other.manifest["matrices"].items():
            manifest["matrices"][name]["levels"] |= record["levels"]
        manifest["tensors"] |= other.manifest["tensors"]
        tensors |= other.tensors
        unchecked |= other.unchecked
    missing = [level for level in levels if round(level, 4) not in manifest["levels"]]
    if missing:
        raise UserError(
            f"levels {missing} are not in the database (it has {manifest['levels']})",
            where=", ".join(map(str, parts)),
            remedy="build the database again for these ratios and offsets",
        )
    return Database(manifest, tensors, unchecked)


def _open_part(folder: Path, check: bool) -> Database:
    manifest = read_sealed(folder / MANIFEST)
    tensors: dict[str, torch.Tensor] = {}
    unchecked: dict[str, Path] = {}
    for name, digest in manifest["files"].items():
        path = folder / name
        if check and file_digest(path) != digest:
            raise DamagedFile(path)
        read = load_tensors(path)
        tensors.update(read)
        if not check:
            unchecked.update(dict.fromkeys(read, path))
    if missing := manifest["tensors"].keys() ^ tensors.keys():
        raise UserError(
            f"its files do not hold the tensors of its manifest: {min(missing)}",
            where=str(folder),
            remedy=f"`rm -r {folder}`, and it is built again",
        )
    return Database(manifest, tensors, unchecked)
