"""The chaos command: its list of cases, and that it sees what is wrong in a workspace."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tools.chaos.cases import BEGIN, KILLS, MOMENTS, OTHERS, RECORDS, plan
from tools.chaos.check import living, mlflow_records, problems
from tools.chaos.flow import events_in
from tools.chaos.table import table
from tools.chaos.workspace import Facts, outputs, work_files

STAGES = ["model", "prune@a-0.5", "prune@b-0.5", "report"]


def test_a_list_covers_every_stage_at_every_moment_with_every_fault() -> None:
    cases = plan(STAGES, 36, seed=3)
    kills = Counter(
        (case.stage, blow.moment) for case in cases if not case.fault for blow in case.blows
    )
    for stage in (BEGIN, *STAGES, RECORDS):
        for moment in MOMENTS:
            assert kills[stage, moment] > 0
    faults = {blow.fault for case in cases for blow in case.blows}
    assert faults == {*KILLS, *OTHERS}


def test_a_list_depends_on_its_seed_alone() -> None:
    assert plan(STAGES, 20, seed=1) == plan(STAGES, 40, seed=1)[:20]
    assert plan(STAGES, 20, seed=1) != plan(STAGES, 20, seed=2)


def test_a_list_begins_with_one_stage_of_each_kind() -> None:
    stages = [case.stage for case in plan(STAGES, 9, seed=0) if not case.fault]
    assert stages == [BEGIN, "model", "prune@b-0.5", "report", RECORDS, "prune@a-0.5"]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A folder with one output, one record in MLflow and one finished run in Prefect."""
    root = tmp_path / "workspace"
    (root / "artifacts" / "model").mkdir(parents=True)
    (root / "artifacts" / "model" / "weights").write_text("weights")
    (root / ".work" / "events").mkdir(parents=True)
    (root / ".work" / "events" / "model.jsonl").write_text(
        '{"name": "step", "done": 1, "total": 2}\n{"name": "step", "do'
    )
    (root / ".prefect").mkdir()
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        database.executescript(
            """
            CREATE TABLE runs (run_uuid, name, status, lifecycle_stage);
            CREATE TABLE model_versions (name, version, source);
            CREATE TABLE registered_model_aliases (name, alias, version);
            CREATE TABLE metrics (run_uuid, key, step, value);
            INSERT INTO runs VALUES ('1', 'dense', 'FINISHED', 'active');
            INSERT INTO runs VALUES ('2', 'dense', 'RUNNING', 'deleted');
            INSERT INTO model_versions VALUES ('toy', 1, 'dvc://model');
            INSERT INTO registered_model_aliases VALUES ('toy', 'champion', 1);
            INSERT INTO metrics VALUES ('1', 'accuracy', 0, 0.5);
            INSERT INTO metrics VALUES ('1', 'export/seconds', 0, 0.5);
            """
        )
    with closing(sqlite3.connect(root / ".prefect" / "prefect.db")) as database:
        database.executescript(
            """
            CREATE TABLE flow_run (name, state_type);
            CREATE TABLE task_run (name, state_type);
            INSERT INTO flow_run VALUES ('fox', 'COMPLETED');
            """
        )
    return root


def facts_of(root: Path) -> Facts:
    return Facts(
        stages=["model"],
        seconds={"model": 1.0},
        events={"model": events_in(root, "model")},
        digests=outputs(root),
        timed=[],
        work=work_files(root),
        records=mlflow_records(root),
    )


def sql(root: Path, name: str, command: str) -> None:
    with closing(sqlite3.connect(root / name)) as database, database:
        database.execute(command)


def test_times_that_are_measured_again_are_no_difference(workspace: Path) -> None:
    facts = facts_of(workspace)
    for name in ("export/seconds", "summary/decode_ms", "summary/decode_ratio_to_dense"):
        sql(workspace, "mlflow.db", f"INSERT INTO metrics VALUES ('1', '{name}', 0, 0.7)")
    assert list(problems(workspace, facts, workspace / ".prefect")) == []


DAMAGES: dict[str, Callable[[Path], object]] = {
    "artifacts/model/weights has other bytes": lambda root: (
        root / "artifacts/model/weights"
    ).write_text("others"),
    "artifacts/model/weights is missing": lambda root: (root / "artifacts/model/weights").unlink(),
    "artifacts/new is new": lambda root: (root / "artifacts/new").touch(),
    "artifacts/.model.tmp is a temporary file": lambda root: (
        root / "artifacts/.model.tmp"
    ).mkdir(),
    ".work/recorded is left over": lambda root: (root / ".work/recorded").touch(),
    "MLflow's runs": lambda root: sql(
        root, "mlflow.db", "INSERT INTO runs VALUES ('3', 'dense', 'FINISHED', 'active')"
    ),
    "MLflow's versions": lambda root: sql(
        root, "mlflow.db", "INSERT INTO model_versions VALUES ('toy', 2, 'dvc://model')"
    ),
    "MLflow's champion": lambda root: sql(
        root, "mlflow.db", "DELETE FROM registered_model_aliases"
    ),
    "MLflow's metrics": lambda root: sql(root, "mlflow.db", "UPDATE metrics SET value = 0.25"),
    "Prefect's task_run wolf is RUNNING": lambda root: sql(
        root, ".prefect/prefect.db", "INSERT INTO task_run VALUES ('wolf', 'RUNNING')"
    ),
}


@pytest.mark.parametrize("words", DAMAGES)
def test_what_is_wrong_is_seen(words: str, workspace: Path) -> None:
    facts = facts_of(workspace)
    assert list(problems(workspace, facts, workspace / ".prefect")) == []
    DAMAGES[words](workspace)
    found = list(problems(workspace, facts, workspace / ".prefect"))
    assert len(found) == 1 and words in found[0]


def test_an_orphan_is_seen(workspace: Path) -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], cwd=workspace, stdin=-1)
    try:
        assert list(living(workspace)) == [sleeper.pid]
    finally:
        sleeper.kill()
        sleeper.wait()
    assert living(workspace) == {}


def test_events_that_are_half_written_do_not_count(workspace: Path) -> None:
    assert events_in(workspace, "model") == ["step 1/2"]
    shutil.rmtree(workspace / ".work")
    assert events_in(workspace, "model") == []


def test_the_table_counts_what_was_not_missed() -> None:
    blow = {"moment": "start", "fault": "flow", "missed": False, "when": "SIGKILL", "status": -9}
    row = {"number": 0, "stage": "model", "records": False, "deep": True, "commit": "abc"}
    rows = [
        {**row, "blows": [blow, {**blow, "missed": True}], "problems": []},
        {**row, "number": 1, "blows": [blow], "problems": ["an orphan"]},
        {**row, "number": 2, "blows": [{**blow, "fault": "small_disk"}], "problems": []},
    ]
    text = table(rows, seed=5)
    assert "Commit abc, seed 5, 3 cases: 1 of 2 kills survived, and 1 of 1 other faults." in text
    assert "| `model` | 1 of 2 |" in text and "- an orphan" in text
