"""Checkpoints whose pruned matrices are packed: told from others, config.json compared.

`efficientllava.sparse` writes and reads them; docs/sparse_format.md describes them.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from efficientllava.errors import UserError
from efficientllava.reading import opened_tensors, parse_json, read_model_config

SECTION = "quantization_config"
"""Of config.json: how weights are stored where they are no plain matrices."""
PACKED = "efficientllava_sparse"
"""`quant_method` there, and the key of the checksums in a file's metadata."""
VERSION = 1
"""Of the format: the only one there is."""
VOLATILE = ("transformers_version", "architectures", "_name_or_path")
"""Entries of config.json that transformers changes by itself; no answer depends on them."""
DAMAGED = "the checkpoint is damaged: get it again, or pack the model again"


def is_packed(folder: Path) -> bool:
    """Whether config.json says that the pruned matrices are packed.

    Raises:
        UserError: no readable config.json.
    """
    section = read_model_config(folder).get(SECTION)
    return isinstance(section, dict) and section.get("quant_method") == PACKED


def require_unpacked(folder: Path) -> None:
    """Check that the weights can be changed.

    Raises:
        UserError: as `is_packed`; they are packed.
    """
    if is_packed(folder):
        raise UserError(
            "its pruned matrices are packed, and packed ones cannot be pruned",
            where=str(folder),
            remedy=f"efficientllava unpack {folder} OUT, and give OUT",
        )


def require_version(version: Any, where: str) -> None:
    """Check that a version of the format is known.

    Raises:
        UserError: it is newer than this release, or none.
    """
    if isinstance(version, int) and version > VERSION:
        raise UserError(
            f"version {version} of the sparse format is newer than {VERSION}, the last one known",
            where,
            "install a newer efficientllava: pip install -U efficientllava",
        )
    if version != VERSION or isinstance(version, bool):
        raise UserError(f"version {version!r} of the sparse format is unknown", where, DAMAGED)


def config_checksum(config: Mapping[str, Any]) -> str:
    """CRC-32 of a config.json without what transformers changes by itself."""
    kept = {name: value for name, value in config.items() if name not in VOLATILE}
    return f"{zlib.crc32(json.dumps(kept, sort_keys=True).encode()):08x}"


def record_of(file: Path) -> dict[str, Any]:
    """The record in a file's metadata: version, config, tensors, source, total.

    Raises:
        UserError: there is none, it is malformed, or of another version.
    """
    try:
        with opened_tensors(file) as opened:
            text = (opened.metadata() or {}).get(PACKED, "")
        record = parse_json(text, str(file))
        tensors, source = record["tensors"], record["source"]
        sound = isinstance(tensors, dict) and isinstance(source, dict)
        if not sound or not isinstance(record["config"], str) or record["total"] < len(tensors):
            raise TypeError("of another type")
    except (UserError, KeyError, TypeError) as error:
        problem = error.what if isinstance(error, UserError) else error
        raise UserError(f"holds no checksums ({problem})", str(file), DAMAGED) from error
    require_version(record.get("version"), str(file))
    return dict(record)


def has_record(files: Sequence[Path]) -> bool:
    """Whether any of the files was written packed, whatever config.json says now."""
    for file in files:
        with opened_tensors(file) as opened:
            if PACKED in (opened.metadata() or {}):
                return True
    return False


def check_config(files: Sequence[Path], config_file: Path) -> None:
    """Check that config.json is the one that was written with a packed checkpoint's files.

    Raises:
        UserError: it was changed; a file holds no checksums; the version is not known.
    """
    content = read_model_config(config_file.parent)
    section = content.get(SECTION)
    if isinstance(section, dict) and section.get("quant_method") == PACKED:
        require_version(section.get("version"), str(config_file))
    config = config_checksum(content)
    if any(record_of(file)["config"] != config for file in files):
        raise UserError(
            "is not the file that was written with these weights",
            str(config_file),
            "if you changed it: unpack the checkpoint, change it there and pack it again; "
            "if you did not, it is damaged: get it again",
        )
