"""MLflow's SQLite file is whole or not there, whenever its maker was killed."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from efficientllava.errors import UserError
from efficientllava.files import file_digest
from efficientllava.parameters import TrackingParameters
from flows.tracking import store
from flows.tracking.store import make_whole
from flows.tracking.tracking import Tracking
from tests.flows.conftest import ROOT

# Makes FOLDER/N.db for each N given; the maker kills itself, by SIGKILL, before its Nth statement.
KILLER = """
import os, signal, sys
from sqlalchemy import event
from sqlalchemy.engine import Engine
from flows.tracking.store import make_whole
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

who, folder, *moments = sys.argv[1:]
for moment in map(int, moments):
    child = os.fork()
    if child == 0:
        left = iter(range(moment, -1, -1))
        event.listen(
            Engine,
            "before_cursor_execute",
            lambda *_: next(left) or os.kill(os.getpid(), signal.SIGKILL),
        )
        uri = f"sqlite:///{folder}/{moment}.db"
        make_whole(uri) if who == "ours" else SqlAlchemyStore(uri, "mlruns")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""


def killed(how: str, folder: Path, *moments: int) -> list[Path]:
    subprocess.run(
        [sys.executable, "-c", KILLER, how, str(folder), *map(str, moments)],
        cwd=ROOT,
        check=True,
        timeout=300,
    )
    return [folder / f"{moment}.db" for moment in moments]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with an experiment of ours."""
    root = tmp_path_factory.mktemp("whole")
    Tracking(TrackingParameters(), root)
    return root / "mlflow.db"


@pytest.fixture(autouse=True)
def no_server_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_a_half_made_database_is_made_anew(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_make", lambda path: shutil.copyfile(whole, path))
    monkeypatch.setattr(store, "QUIET_SECONDS", 0.1)
    # nothing yet, first tables, in the middle of schemas, while a table is being changed
    for half in killed("mlflow", tmp_path, 3, 60, 600, 800):
        tracking = Tracking(TrackingParameters(uri=f"sqlite:///{half}"), tmp_path)
        assert tracking.client.get_experiment_by_name("efficientllava") is not None
        assert tracking.unfinished == half.with_name(f"{half.name}.unfinished")
        assert tracking.unfinished.is_file()
        assert make_whole(f"sqlite:///{half}") is None  # and from now on it stays


def test_a_killed_maker_leaves_no_half_database(tmp_path: Path) -> None:
    [made] = killed("ours", tmp_path, 600)
    assert not made.exists()
    tracking = Tracking(TrackingParameters(uri=f"sqlite:///{made}"), tmp_path)
    assert tracking.unfinished is None
    assert tracking.client.get_experiment("0").name == "Default"
    assert not list(tmp_path.glob(".*.tmp"))


def test_an_older_complete_database_is_left_alone(whole: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.db"
    shutil.copyfile(whole, old)
    with closing(sqlite3.connect(old)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '90e64c465722'")
    before = file_digest(old)
    assert make_whole(f"sqlite:///{old}") is None
    with pytest.raises(UserError, match="mlflow db upgrade"):
        Tracking(TrackingParameters(uri=f"sqlite:///{old}"), tmp_path)
    assert file_digest(old) == before and not list(tmp_path.glob("*.unfinished"))


def test_a_database_of_an_older_mlflow_is_left_to_mlflow(tmp_path: Path) -> None:
    """Its tables are those of an earlier schema, as a killed maker's are; but it holds a run's."""
    from alembic import command
    from mlflow.store.db.utils import InitialBase, _get_alembic_config
    from sqlalchemy import create_engine

    old = tmp_path / "old.db"
    engine = create_engine(f"sqlite:///{old}")
    InitialBase.metadata.create_all(engine)
    config = _get_alembic_config(f"sqlite:///{old}")
    command.upgrade(config, "89d4b8295536")
    engine.dispose()
    with closing(sqlite3.connect(old)) as database, database:
        database.execute("INSERT INTO experiments (experiment_id, name) VALUES (7, 'theirs')")
    before = file_digest(old)
    assert make_whole(f"sqlite:///{old}") is None
    assert file_digest(old) == before and list(tmp_path.iterdir()) == [old]
    with closing(sqlite3.connect(old)) as database, database:
        database.execute("DELETE FROM experiments")
    assert store._is_unfinished(old)  # without it, it is what a killed maker leaves


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    other, text = tmp_path / "other.db", tmp_path / "text.db"
    with closing(sqlite3.connect(other)) as database, database:
        database.execute("CREATE TABLE recipes (name TEXT)")
    text.write_text("no database")
    for path in (other, text):
        before = file_digest(path)
        assert make_whole(f"sqlite:///{path}") is None
        assert file_digest(path) == before
    assert make_whole("http://127.0.0.1:9") is None
    assert make_whole("sqlite://") is None
    assert sorted(tmp_path.iterdir()) == [other, text]


def test_a_database_that_is_being_made_is_waited_for(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mlflow.db"
    path.touch()
    monkeypatch.setattr(store.time, "sleep", lambda seconds: shutil.copyfile(whole, path))
    assert make_whole(f"sqlite:///{path}") is None
    assert file_digest(path) == file_digest(whole)
