"""Checkpoints with packed matrices, and back. Both folders are written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from efficientllava.errors import UserError
from efficientllava.files import DIGESTS, read_json, replacing, require_place
from efficientllava.models.packed import DAMAGED, SECTION, is_packed, record_of
from efficientllava.models.weight_files import (
    PICKLES,
    weight_files,
    weights_entry,
)
from efficientllava.reading import TensorReader, read_model_config
from efficientllava.sparse.layout import dtype_name
from efficientllava.sparse.pruned import (
    WEIGHT,
    Packing,
    Piece,
    find_pruned,
    pieces_of,
    places_of,
    settings_for,
    unpacked_weight,
)
from efficientllava.sparse.record import (
    PIECES,
    Settings,
    Stack,
    member_of,
    metadata,
    packed_settings,
    verify,
)
from efficientllava.sparse.tensor_file import (
    NAMES,
    ORDER,
    Entry,
    TensorFile,
    entries_of,
    in_threads,
    metadata_of,
)

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", *PICKLES, DIGESTS)


def pack_checkpoint(folder: str | Path, out: str | Path, dtype: str | None = None) -> Settings:
    """Write a checkpoint with the pruned matrices of another one packed.

    A linear layer or a matrix of an expert is pruned if it is smaller packed than as it is.
    Everything else is copied bit by bit, but for pickles and safetensors that transformers would
    not read. Where a matrix of an expert is packed, tensors that stack experts are taken apart.

    Args:
        dtype: None keeps each weight bit by bit; "int8" rounds the packed ones to 255 levels a row,
            and the relative error of each is recorded.

    Raises:
        UserError: the folder is no checkpoint of a known family, is packed or quantized already,
            holds NaN or inf (named), or no pruned matrix; `out` exists; the disk is full.
    """
    folder, out = Path(folder), Path(out)
    if dtype not in (None, "int8"):
        raise UserError(f"{dtype!r} is no dtype to pack in", "dtype", "leave it out, or give int8")
    _require_new(folder, out)
    config = _unquantized_config(folder)
    files, reader = weight_files(folder), TensorReader()
    packings, stacks = find_pruned(folder, files, dtype)
    settings = settings_for(packings, stacks)
    config[SECTION] = settings.section()
    contents = {file: _packed_entries(file, packings, stacks) for file in files}
    total = sum(map(len, contents.values()))

    def write(file: Path, place: Path) -> TensorFile:
        source, written = metadata_of(file), TensorFile(place, contents[file])

        def bring(piece: Piece) -> None:
            tensor = piece.read(reader, file)
            for name, each in piece.tensors(tensor, packings.get(piece.module)).items():
                written.write(name, each)

        return _write(
            written,
            pieces_of(entries_of(file), stacks),
            bring,
            lambda sums: metadata(sums, config, source, total),
        )

    with replacing(out) as temporary:
        _copy_rest(folder, temporary, config)
        _write_weights(folder, temporary, write)
    return settings


def unpack_checkpoint(folder: str | Path, out: str | Path) -> None:
    """Write the checkpoint that a packed one was made from: `pack_checkpoint` backwards.

    Tensors are the same bit by bit, and so are files that transformers had written. int8 codes
    become numbers of the dtype that the matrix had.

    Raises:
        UserError: the folder is not packed or is damaged (see `record.verify`); `out` exists; the
            disk is full.
    """
    folder, out = Path(folder), Path(out)
    _require_new(folder, out)
    files, settings = weight_files(folder), packed_settings(folder)
    if settings is None:
        raise UserError(
            "is no packed checkpoint", str(folder), "efficientllava pack FOLDER OUT makes one"
        )
    verify(files, settings, folder / "config.json")
    config = read_model_config(folder)
    del config[SECTION]
    file_of, reader = places_of(files), TensorReader()
    _require_members(settings, file_of, folder)
    with replacing(out) as temporary:
        _copy_rest(folder, temporary, config)
        _write_weights(
            folder,
            temporary,
            lambda file, place: _unpack_file(file, place, file_of, settings, reader),
        )


def _require_new(folder: Path, out: Path) -> None:
    """Refuse a folder that holds something, and one inside of the other."""
    where, remedy = f"writing {out}", "name another folder, or remove it"
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise UserError("it exists already", where, remedy)
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"it lies in {folder}", where, remedy)
    require_place(out, where)


def _unquantized_config(folder: Path) -> dict[str, Any]:
    weights_entry(folder)  # raises where there is no config.json, or one that is no object
    config: dict[str, Any] = read_model_config(folder)
    if is_packed(folder):
        raise UserError("is packed already", str(folder), "efficientllava unpack FOLDER OUT")
    if config.get(SECTION) is not None:
        raise UserError(
            f"is quantized ({SECTION} in config.json); quantized weights cannot be packed",
            str(folder),
            "give a pruned checkpoint in bfloat16, float16 or float32",
        )
    return config


def _packed_entries(
    file: Path, packings: dict[str, Packing], stacks: dict[str, Stack]
) -> list[Entry]:
    """What the packed file in the place of another one holds."""
    dense = entries_of(file)
    return [
        entry
        for piece in pieces_of(dense, stacks)
        for entry in piece.entries(dense[piece.name], packings.get(piece.module))
    ]


def _require_members(settings: Settings, file_of: Mapping[str, Path], folder: Path) -> None:
    """Check that each matrix of each stack is there."""
    for name, stack in settings.stacked.items():
        for expert in range(stack.shape[0]):
            if f"{member_of(name, expert)}{WEIGHT}" not in file_of:
                raise UserError(f"{member_of(name, expert)} is missing", str(folder), DAMAGED)


def _unpack_file(
    file: Path,
    place: Path,
    file_of: Mapping[str, Path],
    settings: Settings,
    reader: TensorReader,
) -> TensorFile:
    """Write a file of the dense checkpoint: whole matrices, stacks expert by expert."""
    entries, source, stacks = [], record_of(file)["source"], settings.stacked
    members = {piece.module for piece in pieces_of(stacks, stacks)}
    unpacked = settings.unpacked_dtype
    for name, entry in entries_of(file).items():
        module, _, piece = name.rpartition(".")
        if name in stacks:
            dtype = NAMES[getattr(torch, unpacked)] if unpacked else entry.dtype
            entries.append(Entry(name, dtype, tuple(stacks[name].shape)))
        elif module in members:
            continue
        elif module not in settings.modules or piece not in ("weight", *PIECES):
            entries.append(entry)
        elif piece == "weight":
            rows, columns = settings.modules[module]
            dtype = unpacked or dtype_name(ORDER[entry.dtype])
            entries.append(Entry(name, NAMES[getattr(torch, dtype)], (rows, columns)))
    written = TensorFile(place, entries, stacks)

    def bring(piece: Piece) -> None:
        if piece.expert is None and piece.module not in settings.modules:
            written.write(piece.name, reader.tensor(file, piece.name))
            return
        weight = unpacked_weight(piece.module, file_of, settings, reader)
        if piece.transposed:
            weight = weight.t().contiguous()
        dtype = ORDER[written.entries[piece.name].dtype]
        written.write(piece.name, weight.to(dtype), piece.expert)

    pieces = pieces_of([entry.name for entry in entries], stacks)
    return _write(written, pieces, bring, lambda sums: source)


def _write(
    written: TensorFile,
    pieces: Iterable[Piece],
    bring: Callable[[Piece], None],
    metadata_of_file: Callable[[dict[str, str]], dict[str, str]],
) -> TensorFile:
    """Write a file, a few of its tensors at the same time.

    Args:
        bring: writes a piece.
        metadata_of_file: by the checksums of the tensors.
    """
    with closing(written):
        written.begin(metadata_of_file(written.checksums))
        for _ in in_threads(bring, pieces):
            pass
        written.finish(metadata_of_file(written.checksums))
    return written


def _write_weights(
    folder: Path, temporary: Path, write: Callable[[Path, Path], TensorFile]
) -> None:
    """Write every file of weights anew, and the index with the new names and sizes."""
    entry, size = weights_entry(folder), 0
    placed: dict[str, str] = {}
    for file in weight_files(folder):
        written = write(file, temporary / file.name)
        size += sum(each.nbytes for each in written.entries.values())
        placed |= dict.fromkeys(written.entries, file.name)
    if entry.name.endswith(".json"):
        index = read_json(entry)
        index["weight_map"] = placed
        if "total_size" in index["metadata"]:
            index["metadata"]["total_size"] = size
        _write_json(temporary / entry.name, index)


def _copy_rest(folder: Path, temporary: Path, config: dict[str, Any]) -> None:
    """Copy everything that is no file of weights, and write config.json."""
    temporary.mkdir()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        place = temporary / file.relative_to(folder)
        if not any(file.match(pattern) for pattern in WEIGHT_FILES):
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
    _write_json(temporary / "config.json", config)


def _write_json(path: Path, value: Any) -> None:
    """As transformers writes it, so that what is unpacked has the bytes of the original."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
