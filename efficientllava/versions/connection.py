"""The MLflow that a workspace uses, and one of its versions by name."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficientllava.errors import UserError
from efficientllava.loopback import MLFLOW, require_mlflow
from efficientllava.parameters import TrackingParameters
from efficientllava.parsing import parse_parameters
from efficientllava.reading import read_text, require_plain_yaml
from efficientllava.reading.yaml_text import LARGEST

PARAMETERS = Path("params.yaml")


def tracking_uri(parameters: TrackingParameters, root: Path) -> str:
    """Where MLflow is: its own environment variable goes before params.yaml.

    A relative database file lies in the workspace, wherever this process is or goes.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or parameters.uri
    scheme, slashes, path = uri.partition(":///")
    if scheme.startswith("sqlite") and slashes and not path.startswith("/"):
        return f"{scheme}:///{root.resolve() / path}"
    return uri


@dataclass(frozen=True)
class Connection:
    """An MLflow and one registered model in it.

    Attributes:
        client: an `MlflowClient`.
        name: of the registered model.
        uri: of this MLflow.
    """

    client: Any
    name: str
    uri: str

    def version(self, named: str) -> Any:
        """A version by its number, an alias (`champion`, `@champion`), or `models:/NAME/...`.

        Raises:
            UserError: there is none.
        """
        from mlflow.exceptions import MlflowException

        name, which = self.name, named
        if named.startswith("models:/"):
            name, which = _parts(named)
        try:
            if which.isdecimal():
                return self.client.get_model_version(name, which)
            return self.client.get_model_version_by_alias(name, which.removeprefix("@"))
        except MlflowException as error:
            raise UserError(
                f"there is no version {named} ({str(error).splitlines()[0]})",
                where=f"MLflow, registered model {name}",
                remedy=f"known: {self._known(name)}",
            ) from error

    def _known(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            aliases = self.client.get_registered_model(name).aliases
            numbers = [version.version for version in self._versions(name)]
        except MlflowException:
            return "no registered model of that name"
        named = [f"@{alias}" for alias in sorted(aliases)]
        return ", ".join([*map(str, sorted(map(int, numbers))), *named]) or "no version"

    def _versions(self, name: str) -> list[Any]:
        return [v for v in self.client.search_model_versions() if v.name == name]


def _parts(address: str) -> tuple[str, str]:
    path = address.removeprefix("models:/")
    name, at, alias = path.rpartition("@")
    if at and "/" not in alias:
        return name, f"@{alias}"
    name, slash, number = path.rpartition("/")
    if not slash:
        raise UserError("is neither models:/NAME/NUMBER nor models:/NAME@ALIAS", where=address)
    return name, number


@contextmanager
def connected(uri: str | None = None, name: str | None = None) -> Iterator[Connection]:
    """MLflow as params.yaml of the current folder names it; the defaults where there is none.

    Args:
        uri: another MLflow.
        name: another registered model.

    Raises:
        UserError: params.yaml cannot be read, or MLflow cannot be used; here or in the block.
    """
    parameters = _tracking()
    uri = uri or tracking_uri(parameters, Path.cwd())
    scheme, _, path = uri.partition(":///")
    if scheme.startswith("sqlite") and not Path(path).is_file():
        raise UserError(
            "there is no such MLflow database",
            where=uri,
            remedy="start in the clone, give --uri, or set MLFLOW_TRACKING_URI",
        )
    require_mlflow(uri)
    # MLflow's own default is some minutes of silent retries
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # it prints a traceback for every error that it raises
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        client = MlflowClient(uri, registry_uri=uri)
        yield Connection(client, name or parameters.registered_model, uri)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        said = str(error).splitlines()[0]
        raise UserError(
            f"MLflow cannot be used ({said})", f"MLflow at {uri}", MLFLOW.format("--uri")
        ) from error


def _tracking() -> TrackingParameters:
    if not PARAMETERS.is_file():
        return TrackingParameters()
    import yaml

    text = read_text(PARAMETERS, LARGEST)
    require_plain_yaml(text, str(PARAMETERS))
    values = yaml.safe_load(text)
    section = values.get("tracking", {}) if isinstance(values, dict) else {}
    return parse_parameters({"tracking": section}).tracking
