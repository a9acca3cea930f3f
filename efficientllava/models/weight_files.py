"""The safetensors files of a checkpoint: found, checked, read piece by piece."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from efficientllava.errors import UserError
from efficientllava.finite import all_finite
from efficientllava.reading import (
    opened_tensors,
    read_json,
    read_model_config,
    require_regular,
)

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
"""Files of a distributed checkpoint, which transformers reads before any other."""


def weights_entry(folder: Path) -> Path:
    """The file from which transformers starts to read weights: one with all of them, or an index.

    The rule is that of `from_pretrained`: the file named by `transformers_weights` in config.json;
    otherwise model.safetensors; otherwise its index. Other safetensors in the folder are ignored.

    Raises:
        UserError: no folder, no config.json or a malformed one, none of these files (or only
            pickles), or one that is no regular file; a distributed checkpoint.
    """
    folder = Path(folder)
    if not folder.is_dir():
        problem = "is a file, no model folder" if folder.is_file() else "no such model folder"
        raise UserError(problem, str(folder), "name the folder of a checkpoint")
    if not (folder / "config.json").exists():
        raise UserError(
            "the model folder has no config.json",
            where=str(folder),
            remedy="give a folder saved by transformers' save_pretrained",
        )
    config = read_model_config(folder)
    if any(DISTRIBUTED.fullmatch(path.name) for path in folder.iterdir()):
        raise UserError(
            "the model folder holds a distributed checkpoint (shard-*.safetensors)",
            where=str(folder),
            remedy="load it with transformers and save it again with save_pretrained",
        )
    named = config.get("transformers_weights")
    if named is not None and not (
        isinstance(named, str)
        and _is_bare(named)
        and named.endswith((".safetensors", ".safetensors.index.json"))
    ):
        raise UserError(
            f"transformers_weights names {named!r}, which is no safetensors file of this folder",
            where=str(folder / "config.json"),
        )
    for name in (WHOLE, INDEX) if named is None else (named,):
        if (folder / name).is_symlink() or (folder / name).exists():
            require_regular(folder / name)
            return folder / name
    raise UserError(
        f"the model folder holds {_other_weights(folder)}; pickles are never loaded",
        where=str(folder),
        remedy="save it again with save_pretrained(..., safe_serialization=True)",
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that `from_pretrained` reads, in its order, each opened once.

    Where files hold the same weight, the last one counts.

    Raises:
        UserError: as `weights_entry`; a malformed index, or one that names files elsewhere; a shard
            that is missing, no regular file or truncated.
    """
    entry = weights_entry(folder)
    files = _shards(entry) if entry.name.endswith(".json") else [entry]
    for file in files:
        with opened_tensors(file):
            pass
    return files


def _shards(index: Path) -> list[Path]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise _malformed(index, "it has no weight_map from weights to files")
    for name in weight_map.values():
        if not isinstance(name, str) or not _is_bare(name) or not name.endswith(".safetensors"):
            raise _malformed(index, f"it names {name!r}, which is no safetensors file beside it")
    files = [index.parent / name for name in sorted(set(weight_map.values()))]
    for file in files:
        if not (file.is_symlink() or file.exists()):
            raise UserError(
                f"shard {file.name} is missing",
                where=str(index.parent),
                remedy="download it again",
            )
        require_regular(file)
    if not isinstance(content.get("metadata"), dict):
        raise _malformed(index, "it has no metadata")
    return files


def _malformed(index: Path, what: str) -> UserError:
    return UserError(
        f"not an index that transformers can read: {what}",
        where=str(index),
        remedy="download the checkpoint again, or save it again with save_pretrained",
    )


def _is_bare(name: str) -> bool:
    """Whether a name is that of a file in the folder itself."""
    return not any(mark in name for mark in "/\\\0") and name not in ("", ".", "..")


def _other_weights(folder: Path) -> str:
    """The weights in a folder that are no safetensors, for messages."""
    if others := sorted(path.name for path in folder.glob("*.safetensors")):
        return (
            f"no safetensors that transformers loads ({WHOLE} or {INDEX}), only {', '.join(others)}"
        )
    pickled = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    return f"only pickled weights ({', '.join(pickled)})" if pickled else "no safetensors"


def stored_names(file: Path) -> int:
    """How many tensors a safetensors file holds."""
    with opened_tensors(file) as opened:
        return len(opened.keys())


def check_finite(folder: Path) -> None:
    """Read every weight once, one at a time and without keeping any.

    Raises:
        UserError: as `weight_files`; NaN or inf in a weight (named).
    """
    for file in weight_files(folder):
        # pread instead of a mapping: nothing stays in memory
        with opened_tensors(file, backend="pread") as opened:
            for name in opened.keys():
                tensor = opened.get_tensor(name)
                if tensor.dtype in FLOATS and not all_finite(tensor):
                    raise UserError(
                        f"weight {name} holds NaN or inf",
                        where=str(folder),
                        remedy="the checkpoint is damaged: get it again",
                    )
