"""What a packed checkpoint says of itself, and whether its files still hold that.

config.json has the settings, each file's metadata the checksums. Every tensor is read once and
compared before a model is made of it; nothing that was read stays in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from efficientllava.errors import UserError
from efficientllava.models.packed import (
    DAMAGED,
    PACKED,
    SECTION,
    VERSION,
    check_config,
    config_checksum,
    is_packed,
    record_of,
    require_version,
)
from efficientllava.reading import TensorReader, opened_tensors, read_model_config
from efficientllava.sparse.format import PackedMatrix, check
from efficientllava.sparse.layout import LAYOUTS, ROWS, dtype_name
from efficientllava.sparse.tensor_file import checksum, in_threads

PIECES = ("masks", "values", "offsets", "scales")
"""The tensors of a packed matrix, by the last part of their names."""


@dataclass(frozen=True)
class Stack:
    """A tensor of three dimensions that stacked the matrices of a mixture's experts.

    Attributes:
        shape: [experts, rows, columns], or [experts, columns, rows].
        transposed: whether it is the second.
    """

    shape: list[int]
    transposed: bool


def member_of(stack: str, expert: int) -> str:
    """The name that a matrix of a stacked tensor has as a module of its own."""
    experts, _, parameter = stack.rpartition(".")
    return f"{experts}.{expert}.{parameter}"


@dataclass(frozen=True)
class Settings:
    """The section `quantization_config` of config.json.

    Attributes:
        dtype: of the values; "mixed" where matrices differ.
        modules: [rows, columns] of each packed matrix by its name in the files.
        errors: relative error of each matrix of int8 codes; empty where nothing is lost.
        unpacked_dtype: of the matrices that int8 codes were made from; None elsewhere.
        stacked: tensors whose matrices lie apart in the packed files, by name.
    """

    dtype: str
    modules: dict[str, list[int]]
    errors: dict[str, float] = field(default_factory=dict)
    unpacked_dtype: str | None = None
    stacked: dict[str, Stack] = field(default_factory=dict)

    def section(self) -> dict[str, Any]:
        """As it stands in config.json."""
        layouts = {dtype_name(dtype): layout for dtype, layout in LAYOUTS.items()}
        columns = layouts[self.dtype].columns if self.dtype in layouts else None
        return {
            "quant_method": PACKED,
            "version": VERSION,
            "group": {"rows": ROWS, "columns": columns},
            "lossy": bool(self.errors),
            **asdict(self),
        }


def settings_of(section: Mapping[str, Any], where: str) -> Settings:
    """Read and check the section.

    Raises:
        UserError: a version that this release does not know; an entry is missing or malformed.
    """
    require_version(section.get("version"), where)
    modules, errors = section.get("modules"), section.get("errors", {})
    stacked = section.get("stacked", {})
    dtype, unpacked = section.get("dtype"), section.get("unpacked_dtype")
    sound = (
        isinstance(dtype, str)
        and (unpacked is None or hasattr(torch, str(unpacked)))
        and isinstance(modules, dict)
        and isinstance(errors, dict)
        and all(_is_shape(shape, 2) for shape in modules.values())
        and isinstance(stacked, dict)
        and all(_is_stack(stack) for stack in stacked.values())
    )
    if not sound or not modules:
        raise UserError(f"{SECTION} does not name matrices and their shapes", where, DAMAGED)
    stacks = {name: Stack(stack["shape"], stack["transposed"]) for name, stack in stacked.items()}
    return Settings(dtype, dict(modules), dict(errors), unpacked, stacks)  # type: ignore[arg-type]


def _is_shape(shape: Any, dimensions: int) -> bool:
    sizes = shape if isinstance(shape, list) and len(shape) == dimensions else [-1]
    return all(isinstance(size, int) and size >= 0 for size in sizes)


def _is_stack(stack: Any) -> bool:
    return (
        isinstance(stack, dict)
        and _is_shape(stack.get("shape"), 3)
        and isinstance(stack.get("transposed"), bool)
    )


def packed_settings(folder: Path) -> Settings | None:
    """The settings of a packed checkpoint; None for any other one.

    Raises:
        UserError: as `settings_of`; no readable config.json.
    """
    if not is_packed(folder):
        return None
    return settings_of(read_model_config(folder)[SECTION], str(Path(folder) / "config.json"))


def metadata(
    checksums: Mapping[str, str], config: Mapping[str, Any], source: Mapping[str, str], total: int
) -> dict[str, str]:
    """A file's metadata.

    Args:
        checksums: by tensor.
        config: the content of config.json.
        total: how many tensors all files hold together.
        source: metadata of the file before it was packed.
    """
    record = {
        "version": VERSION,
        "config": config_checksum(config),
        "tensors": dict(checksums),
        "source": dict(source),
        "total": total,
    }
    return {"format": "pt", PACKED: json.dumps(record, sort_keys=True)}


def verify(
    files: Sequence[Path],
    settings: Settings,
    config_file: Path,
) -> None:
    """Compare config.json and every tensor with what was recorded when they were written.

    Raises:
        UserError: a tensor differs, is missing or was not recorded; config.json was changed; a
            packed matrix is no matrix in this format (`format.check`). It names which.
    """
    recorded: dict[str, str] = {}
    totals = set()
    check_config(files, config_file)
    for file in files:
        record = record_of(file)
        recorded |= record["tensors"]
        totals.add(record["total"])
    if totals != {len(recorded)}:
        raise UserError(
            f"the files hold {len(recorded)} tensors, {max(totals)} were written",
            str(files[0].parent),
            DAMAGED,
        )
    held = {name: file for file in files for name in _names(file)}
    pieces = {f"{module}.{piece}" for module in settings.modules for piece in PIECES[:3]}
    if lacking := (recorded.keys() | pieces) - held.keys():
        raise UserError(f"the tensor {min(lacking)} is missing", str(files[0].parent), DAMAGED)
    reader = TensorReader()

    def check_group(names: list[str]) -> None:
        tensors = {name: reader.tensor(held[name], name) for name in names}
        _verify_tensors(tensors, held, recorded, settings)

    for _ in in_threads(check_group, _by_module(held, settings)):
        pass


def _names(file: Path) -> list[str]:
    with opened_tensors(file) as opened:
        return list(opened.keys())


def _by_module(held: Iterable[str], settings: Settings) -> list[list[str]]:
    """Names of tensors: those of a packed matrix together, every other one alone."""
    groups: dict[str, list[str]] = {}
    for name in held:
        module, _, piece = name.rpartition(".")
        packed = piece in PIECES and module in settings.modules
        groups.setdefault(module if packed else name, []).append(name)
    return list(groups.values())


def _verify_tensors(
    tensors: Mapping[str, torch.Tensor],
    held: Mapping[str, Path],
    recorded: Mapping[str, str],
    settings: Settings,
) -> None:
    for name, tensor in tensors.items():
        where = f"{held[name]}: {name}"
        if name not in recorded:
            raise UserError("no checksum of this tensor was recorded", where, DAMAGED)
        if checksum(tensor) != recorded[name]:
            raise UserError("is not what was written: its checksum differs", where, DAMAGED)
    first = next(iter(tensors))
    module = first.rpartition(".")[0]
    if len(tensors) > 1:
        rows, columns = settings.modules[module]
        pieces = {name.rpartition(".")[2]: tensor for name, tensor in tensors.items()}
        check(PackedMatrix(rows, columns, **pieces), f"{held[first]}: {module}")
