"""The source of a checkpoint: a local folder, or a pinned commit on the hub."""

from __future__ import annotations

from pathlib import Path

from efficientllava.data.conversations import TEMPLATES
from efficientllava.errors import UserError
from efficientllava.reading import expanded

CHECKPOINT_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", TEMPLATES)
"""The files of a checkpoint; never pickles, never code."""

BUILT = ("demo", "smollm2")
"""Values of `model.source` for which the stage `model` builds the checkpoint itself."""

NEEDS_IMAGES = ("paligemma",)
"""Types of models that take no question without an image."""

MATRICES = "matrices.json"
"""Beside the weights that the stage `model` wrote: the names of the prunable matrices, in order."""


def local_folder(source: str | Path) -> Path | None:
    """The folder that a source names, whether it is there or not; None for a hub id."""
    folder = expanded(source)
    text = str(source)
    looks_like_path = text.startswith((".", "/", "~")) or text.count("/") != 1
    return folder if isinstance(source, Path) or folder.is_dir() or looks_like_path else None


def require_source(source: str | Path, revision: str | None, where: str, pin: str) -> Path | None:
    """As `local_folder`, after a check that needs no network.

    Args:
        where: the setting's name in messages.
        pin: the name of the setting that holds the revision.

    Raises:
        UserError: the folder is not there, or a hub id comes without its commit.
    """
    if not str(source).strip():
        raise UserError("is empty", where, "name a model's folder (. is this one) or a hub id")
    folder = local_folder(source)
    if folder is None and revision is None:
        raise UserError(
            f"{source} is no folder here, and a hub id needs its commit in {pin}",
            where=where,
            remedy="correct the path, or pin the revision: the same weights on every run",
        )
    if folder is not None and not folder.is_dir():
        raise UserError(
            "is a file, no model folder" if folder.is_file() else "no such model folder",
            where=f"{where}: {source}",
            remedy="correct the path, or give a hub id (OWNER/NAME) with its commit",
        )
    return folder


def hub_snapshot(name: str, revision: str | None, where: str, cache: Path | None = None) -> Path:
    """Fetch the safetensors, configuration and tokenizer of a pinned hub revision.

    Args:
        where: the setting's name in messages.
        cache: the folder for what is fetched; the hub's own cache when None. What lies there
            already is not fetched again and needs no network.

    Raises:
        UserError: the hub does not give it, or there is no network.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=list(CHECKPOINT_FILES), cache_dir=cache
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"the hub does not give it: {str(error).strip().splitlines()[0]}",
            where=f"{where}: {name} at {revision}",
            remedy="check name, revision and network, or download it and give the folder",
        ) from error
    return Path(folder)
