"""The safetensors files of a checkpoint: found, checked, read piece by piece."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from efficientllava.errors import UserError
from efficientllava.files import read_json
from efficientllava.finite import all_finite

INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in order, each opened once to see that it is whole.

    Raises:
        UserError: no folder, no config.json, no safetensors (or only pickles), a shard missing
            or truncated.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError("no such model folder", where=str(folder))
    if not (folder / "config.json").is_file():
        raise UserError(
            "the model folder has no config.json",
            where=str(folder),
            remedy="give a folder saved by transformers' save_pretrained",
        )
    if (folder / INDEX).is_file():
        names = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
        files = [folder / name for name in names]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        what = f"only pickled weights ({', '.join(pickled)})" if pickled else "no safetensors"
        raise UserError(
            f"the model folder holds {what}; pickles are never loaded",
            where=str(folder),
            remedy="save it again with save_pretrained(..., safe_serialization=True)",
        )
    for file in files:
        if not file.is_file():
            raise UserError(
                f"shard {file.name} is missing", where=str(folder), remedy="download it again"
            )
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"not a complete safetensors file ({error})",
                where=str(file),
                remedy="copy or download the file again",
            ) from error
    return files


def check_finite(folder: Path) -> None:
    """Read every weight once, one at a time and without keeping any.

    Raises:
        UserError: as `weight_files`; NaN or inf in a weight (named).
    """
    for file in weight_files(folder):
        # pread and no mapping: what is read does not stay in memory
        with safe_open(file, framework="pt", backend="pread") as opened:
            for name in opened.keys():
                tensor = opened.get_tensor(name)
                if tensor.dtype in FLOATS and not all_finite(tensor):
                    raise UserError(
                        f"weight {name} holds NaN or inf",
                        where=str(folder),
                        remedy="the checkpoint is damaged: get it again",
                    )
