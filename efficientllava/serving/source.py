"""Where a served checkpoint lies: a folder, or a version in MLflow's registry."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from efficientllava.errors import UserError
from efficientllava.loopback import require_mlflow
from efficientllava.models.folder_kind import checkpoint_in
from efficientllava.reading import expanded

VERSION, DATABASE = "models:/", "mlflow.db"


@contextmanager
def checkpoint_of(source: str, tracking_uri: str | None = None) -> Iterator[Path]:
    """The folder of a checkpoint, for the time of the block.

    Args:
        source: a folder with a checkpoint, an export (its packed checkpoint is meant), or
            `models:/NAME@ALIAS`, `models:/NAME/VERSION`: fetched into a temporary folder.
        tracking_uri: of MLflow; None for MLFLOW_TRACKING_URI, else mlflow.db in the current folder.

    Raises:
        UserError: there is no such folder or version, or it cannot be fetched.
    """
    if not source.startswith(VERSION):
        folder = expanded(source)
        if not source.strip() or not folder.is_dir():
            raise UserError(
                "is a file, no folder" if folder.is_file() else "no such folder",
                where=source,
                remedy=f"name a checkpoint's folder, or a version: {VERSION}NAME@champion",
            )
        yield checkpoint_in(folder)
        return
    with tempfile.TemporaryDirectory(prefix="efficientllava-serve-") as temporary:
        yield _fetched(source, tracking_uri or _configured(), Path(temporary))


def name_of(source: str) -> str:
    """What the model is called in requests: NAME@ALIAS, NAME/VERSION, or the folder's name."""
    if source.startswith(VERSION):
        return source.removeprefix(VERSION)
    return expanded(source).resolve().name or source


def _configured() -> str:
    if (named := os.environ.get("MLFLOW_TRACKING_URI")) is not None:
        return named
    if not Path(DATABASE).is_file():
        raise UserError(
            f"no MLflow is named, and the current folder has no {DATABASE}",
            where=VERSION,
            remedy="start in the clone, set MLFLOW_TRACKING_URI, or give --tracking-uri",
        )
    return f"sqlite:///{DATABASE}"


def _fetched(source: str, tracking_uri: str, folder: Path) -> Path:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    require_mlflow(tracking_uri, "--tracking-uri")
    where = f"{source} at {tracking_uri}"
    try:
        downloaded = download_artifacts(
            artifact_uri=source, dst_path=str(folder), tracking_uri=tracking_uri
        )
    except (MlflowException, OSError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"MLflow cannot fetch it ({said})",
            where=where,
            remedy="`mlflow models` names versions and aliases; --tracking-uri names the server",
        ) from error
    root = Path(downloaded)
    for place in (root, *sorted(path for path in root.iterdir() if path.is_dir())):
        if (place / "config.json").is_file():
            return place
    raise UserError("the version holds no checkpoint (no config.json)", where=where)
