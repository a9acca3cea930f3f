"""MLflow's SQLite file: made whole or not at all.

MLflow makes it step by step, some seconds long. A process killed in between leaves a file that
MLflow can neither use nor finish.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

EXPERIMENTS = {"experiments", "_alembic_tmp_experiments"}  # the second while a step changes it
# tables in which making the database itself leaves rows
FILLED = {"alembic_version", "workspaces"}
NO_LOCKS = {errno.ENOTSUP, errno.ENOLCK, errno.EBADF, errno.ENOSYS}
QUIET_SECONDS = 2.0
"""Seconds without a change after which no process is taken to make the file."""


def make_whole(uri: str) -> Path | None:
    """Make the database of an SQLite address where there is none, or none that was finished.

    A new one is made under another name and renamed. One that was not finished and holds nothing
    is renamed to NAME.unfinished; one that holds anything is never touched, however old.

    Args:
        uri: of MLflow; addresses other than of an SQLite file are left alone.

    Returns:
        Where the unfinished database is now; None when there was none.

    Raises:
        OSError, sqlalchemy.exc.SQLAlchemyError, MlflowException: it cannot be made.
    """
    path = file_of(uri)
    if path is None or (path.exists() and not _is_unfinished(path)):
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.parent):
        aside = None
        if path.exists():
            if not _is_unfinished(path) or not _is_left_alone(path):
                return None  # another process has made it, or is making it
            aside = path.with_name(f"{path.name}.unfinished")
            path.rename(aside)
        _remove(Path(f"{path}-journal"))  # of the unfinished one; SQLite would apply it to the new
        _make(path)
    return aside


def file_of(uri: str) -> Path | None:
    """The file of an SQLite address of MLflow; None for other addresses and for memory."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    if not uri.startswith("sqlite"):
        return None
    try:
        name = make_url(uri).database
    except ArgumentError:
        return None  # MLflow reports the error
    if not name or name == ":memory:" or name.startswith("file:"):
        return None
    return Path(name).resolve()


def _make(path: Path) -> None:
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    temporary = path.with_name(f".{path.name}.tmp")
    for leftover in (temporary, Path(f"{temporary}-journal")):
        _remove(leftover)
    store = SqlAlchemyStore(f"sqlite:///{temporary}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)
    store.engine.dispose()  # closes the file
    temporary.rename(path)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _is_unfinished(path: Path) -> bool:
    """Whether the file is a database of MLflow that was not finished and holds no row of anybody.

    A finished one holds at least the experiment `Default`.
    """
    if not path.is_file():
        return False
    if path.stat().st_size == 0:
        return True
    try:
        with closing(sqlite3.connect(path)) as database:
            names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            tables = {str(name) for (name,) in names if not str(name).startswith("sqlite_")}
            if tables and not tables & EXPERIMENTS:
                return False  # not MLflow's
            for table in tables - FILLED:
                if database.execute(f'SELECT 1 FROM "{table}" LIMIT 1').fetchone():
                    return False
            if "alembic_version" not in tables:
                return True
            version = database.execute("SELECT version_num FROM alembic_version").fetchone()
            return version is None or version[0] != _newest_version()  # else MLflow can use it
    except sqlite3.Error:  # no database, or in use: MLflow says so
        return False


def _newest_version() -> str:
    from alembic.script import ScriptDirectory
    from mlflow.store import db_migrations

    [folder] = db_migrations.__path__
    return str(ScriptDirectory(folder).get_current_head())


def _is_left_alone(path: Path) -> bool:
    """Whether no process makes the file any more."""
    changed = path.stat().st_mtime
    while time.time() - changed < QUIET_SECONDS:
        time.sleep(QUIET_SECONDS)
        if not _is_unfinished(path):
            return False
        if (now := path.stat().st_mtime) == changed:
            break
        changed = now
    return True


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let processes that want to make a database in this folder do it one after the other.

    A network file system may know no lock of a folder: there nothing is waited for.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield
    finally:
        os.close(handle)
