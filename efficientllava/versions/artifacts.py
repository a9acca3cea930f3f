"""MLflow's artifact repository for `dvc://`: `models:/NAME@champion` becomes the pruned folder.

An entry point of this package (group `mlflow.artifact_repository`). Files are copied from DVC's
cache, or its remote, and their md5 is checked. A checkpoint gets one file more, `MLmodel`, by which
`mlflow.pyfunc.load_model` finds `efficientllava.versions.flavour`.
"""

from __future__ import annotations

import platform
import threading
from pathlib import Path
from typing import Any

from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from efficientllava.errors import UserError
from efficientllava.versions.contents import Contents, Pointer

DESCRIPTION = "MLmodel"
CHECKPOINT = "config.json"
"""The file that makes a folder a checkpoint."""


class DvcArtifactRepository(ArtifactRepository):
    """The content of one `dvc://PATH?md5=DIGEST`, to be read only."""

    def __init__(
        self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
    ) -> None:
        super().__init__(artifact_uri, tracking_uri, registry_uri)
        self._lock = threading.Lock()
        self._found: Contents | None = None
        self._database = tracking_uri or registry_uri

    @property
    def _contents(self) -> Contents:
        import mlflow

        with self._lock:  # files are copied by several threads
            if self._found is None:
                try:
                    pointer = Pointer.parse(self.artifact_uri)
                    self._found = Contents(pointer, self._database or mlflow.get_tracking_uri())
                except UserError as error:
                    raise MlflowException(str(error), RESOURCE_DOES_NOT_EXIST) from error
            return self._found

    def _sizes(self) -> dict[str, int]:
        sizes = self._contents.sizes
        if CHECKPOINT in sizes and DESCRIPTION not in sizes:
            sizes[DESCRIPTION] = len(_description().encode())
        return sizes

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """Files and folders directly under a folder; nothing under a file."""
        prefix = f"{path.strip('/')}/" if path else ""
        folders, files = set(), []
        for name, size in self._sizes().items():
            inside = name.removeprefix(prefix)
            if name.startswith(prefix) and "/" in inside:
                folders.add(prefix + inside.partition("/")[0])
            elif name.startswith(prefix):
                files.append(FileInfo(name, False, size))
        listed = [*files, *(FileInfo(name, True, None) for name in folders)]
        return sorted(listed, key=lambda item: str(item.path))

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        contents = self._contents
        if remote_file_path == DESCRIPTION and DESCRIPTION not in contents.files:
            Path(local_path).write_text(_description(), encoding="utf-8")
            return
        if remote_file_path not in contents.files:
            raise MlflowException(
                f"{contents.pointer} has no file {remote_file_path}", RESOURCE_DOES_NOT_EXIST
            )
        try:
            contents.copy(remote_file_path, Path(local_path))
        except UserError as error:
            raise MlflowException(str(error)) from error

    def log_artifact(self, local_file: Any, artifact_path: Any = None) -> None:
        """Refuse: what DVC pins does not change."""
        raise MlflowException(
            f"{self.artifact_uri} is pinned by DVC and takes no files", INVALID_PARAMETER_VALUE
        )

    def log_artifacts(self, local_dir: Any, artifact_path: Any = None) -> None:
        """Refuse, as `log_artifact`."""
        self.log_artifact(local_dir)


def _description() -> str:
    """The MLmodel file: columns, parameters, and the module that loads the folder. No pickle."""
    import yaml
    from mlflow import __version__
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    from efficientllava.versions.flavour import IMAGE, NEW_TOKENS, QUESTION, TOKENS

    signature = ModelSignature(
        inputs=Schema([ColSpec("string", QUESTION), ColSpec("string", IMAGE, required=False)]),
        outputs=Schema([ColSpec("string", required=True)]),
        params=ParamSchema([ParamSpec(NEW_TOKENS, "long", TOKENS)]),
    )
    flavour = {
        "loader_module": "efficientllava.versions.flavour",
        "python_version": platform.python_version(),
    }
    return str(
        yaml.safe_dump(
            {
                "flavors": {"python_function": flavour},
                "mlflow_version": __version__,
                "signature": signature.to_dict(),
            },
            sort_keys=True,
        )
    )
