"""The files of a user's model folder: which of them make up the checkpoint and may be read."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from efficientllava.data.conversations import TEMPLATES
from efficientllava.errors import UserError
from efficientllava.models.weight_files import weight_files, weights_entry

READ = ("*.json", "*.model", "*.txt", "*.jinja", TEMPLATES)
"""Files of transformers beside weights: configuration, tokenizer and processor."""
GB = 10**9


def checkpoint_files(folder: Path) -> list[Path]:
    """The files of a checkpoint: weights as `from_pretrained` reads them, configuration, processor.

    Indexes of other weights and adapters' configurations are left out: they would change what
    transformers reads.

    Raises:
        UserError: as `weight_files`; one of them is no regular file of the folder. Links are
            followed only inside the folder, and from a snapshot of the hub's cache to its blobs.
    """
    folder = Path(folder)
    beside = sorted(path for pattern in READ for path in folder.glob(pattern) if not _is_dir(path))
    for file in beside:
        _require_own(file, folder)
    entry = weights_entry(folder)
    _require_own(entry, folder)
    weights = weight_files(folder)
    for file in weights:
        _require_own(file, folder)
    kept = [
        file
        for file in beside
        if not file.name.endswith(".index.json") and file.name != "adapter_config.json"
    ]
    return sorted({entry, *weights, *kept})


def require_room(files: Sequence[Path], target: Path) -> None:
    """Check that copies of files fit on the disk of a folder that may not be there yet.

    Raises:
        UserError: they do not; it states both sizes.
    """
    there = next(path for path in Path(target).absolute().parents if path.is_dir())
    needed, free = sum(file.stat().st_size for file in files), shutil.disk_usage(there).free
    if needed > free:
        raise UserError(
            f"the checkpoint takes {needed / GB:.1f} GB, {free / GB:.1f} GB are free on the disk",
            where=f"writing {target}",
            remedy="free some space and start again",
        )


def _is_dir(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _require_own(file: Path, folder: Path) -> None:
    if not file.is_file():
        raise UserError(
            "no regular file (a pipe, a socket, a device, or a link that leads to none)",
            where=str(file),
            remedy="put the file itself there",
        )
    home, real = folder.resolve(), file.resolve()
    if not any(root in real.parents for root in (home, *_blobs(home))):
        raise UserError(
            f"the link leads out of the model folder, to {real}",
            where=str(file),
            remedy="give the folder that holds the files, or copy them: cp -rL FOLDER COPY",
        )


def _blobs(home: Path) -> list[Path]:
    """Where the hub's cache keeps the files of a snapshot: its repository's blobs, or all blobs."""
    repository = home.parent.parent
    if home.parent.name != "snapshots" or not repository.name.startswith("models--"):
        return []
    return [repository / "blobs", repository.parent / "blobs"]
