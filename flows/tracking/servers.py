"""Start-up checks of shared servers: their drivers, and a small object written and deleted."""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlparse
from uuid import uuid4

from efficientllava.errors import UserError, without_users
from efficientllava.extras import missing_package
from flows.runner.graph import open_repo

DRIVERS = {"postgresql": "psycopg2", "mysql": "MySQLdb"}
"""Module that MLflow's address needs where it names none."""
SECONDS = 10  # until a connection has been made
CHECKS = "start-up-checks"
"""Folder of the small objects in a store."""
REMEDY = "mend the address or the credentials (docs/servers.md)"


def check_database(uri: str) -> None:
    """Connect to MLflow's database once; MLflow itself would try for minutes.

    Files of SQLite and servers are left alone.

    Raises:
        UserError: its driver is missing, with the extra that installs it, or it cannot be used.
    """
    kind, _, module = urlparse(uri).scheme.partition("+")
    if kind not in DRIVERS:
        return
    where = f"tracking.uri {without_users(uri)}"
    _import(module or DRIVERS[kind], where)
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    try:
        engine = create_engine(uri, connect_args={"connect_timeout": SECONDS})
        engine.connect().close()
        engine.dispose()
    except SQLAlchemyError as error:
        what = f"the database cannot be used ({_first_line(error)})"
        raise UserError(what, where=where, remedy=f"{REMEDY}; nothing has been run yet") from error


def usual_artifacts(uri: str) -> str | None:
    """Where new artifacts go: beside a local database, in mlruns/; a server decides by itself.

    Raises:
        UserError: a database that others use too would be told of a folder of this machine.
    """
    scheme, _, database = uri.partition(":///")
    if not scheme.startswith(("sqlite", "http")):
        raise UserError(
            "artifacts of a database on another machine need a place that all machines reach",
            where="params.yaml, tracking.artifacts",
            remedy="write one, e.g. s3://bucket/mlflow, or let an MLflow server be tracking.uri",
        )
    return (Path(database).parent / "mlruns").as_uri() if scheme.startswith("sqlite") else None


def check_artifacts(location: str, uri: str) -> None:
    """Write one small object into MLflow's artifact store and delete it.

    A folder of this machine is left alone: it needs neither driver nor credentials.

    Args:
        location: of the experiment's artifacts.
        uri: of MLflow, through whose server `mlflow-artifacts:` places are reached.

    Raises:
        UserError: a driver or a credential is missing, or the store does not answer.
    """
    scheme = urlparse(location).scheme
    if scheme in ("", "file"):
        return
    where = f"MLflow's artifacts in {without_users(location)}"
    if scheme == "s3":
        _import("boto3", where)
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    name = uuid4().hex
    try:
        store = get_artifact_repository(location, tracking_uri=uri)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / name
            file.write_text("written by a start-up check, and deleted by it\n")
            store.log_artifact(str(file), CHECKS)
        store.delete_artifacts(f"{CHECKS}/{name}")
    except ModuleNotFoundError as error:
        raise missing_package(error) or UserError(str(error), where=where) from error
    except Exception as error:  # each kind of store has its own errors
        what = f"cannot be written ({_first_line(error)})"
        raise UserError(what, where=where, remedy=f"{REMEDY}; nothing has been run yet") from error


def warn_of_remote(root: Path) -> None:
    """Say where DVC's default remote, if there is one, cannot be written.

    No run needs it, `dvc push` does: so this is no error.
    """
    if (trouble := remote_trouble(root)) is not None:
        print(f"warning: {trouble}", file=sys.stderr)


def remote_trouble(root: Path) -> str | None:
    """Why DVC's default remote cannot be written; None when it can, or there is none."""
    with open_repo(root) as repo:
        name = repo.config["core"].get("remote")
        if not name:
            return None
        try:
            remote = repo.cloud.get_remote(name=name)
            path = remote.fs.join(remote.path, CHECKS, uuid4().hex)
            remote.fs.makedirs(remote.fs.parent(path), exist_ok=True)
            remote.fs.pipe_file(path, b"written by a start-up check, and deleted by it\n")
            remote.fs.rm_file(path)
        except Exception as error:  # each kind of store has its own errors
            return f"`dvc push` will fail: remote {name} cannot be written ({_first_line(error)})"
    return None


def _import(module: str, where: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        known = missing_package(error)
        remedy = known.remedy if known else f"install the package that has {module}"
        raise UserError(f"needs the module {module}", where=where, remedy=remedy) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return without_users(lines[0]) if lines else type(error).__name__
