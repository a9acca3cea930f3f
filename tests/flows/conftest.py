"""A DVC workspace of quick stages, and one Prefect server for all tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dvc.repo import Repo
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State, TaskRun
from prefect.testing.utilities import prefect_test_harness

from flows.pipeline import pipeline

ROOT = Path(__file__).parents[2]
TOY = Path(__file__).parent / "toy"


@pytest.fixture(scope="session")
def prefect() -> Iterator[None]:
    """A server of its own, with its records in a temporary folder."""
    with prefect_test_harness(server_startup_timeout=300):
        yield


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh workspace, which is the current folder."""
    return enter(make_toy(tmp_path / "toy"), monkeypatch)


@pytest.fixture(scope="session")
def first_run(prefect: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, State]:
    """A workspace in which the pipeline has run, not to be touched, and the run's state."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        root = enter(make_toy(tmp_path_factory.mktemp("finished") / "toy"), monkeypatch)
        return root, pipeline(return_state=True)


@pytest.fixture
def finished(
    first_run: tuple[Path, State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A copy of a workspace in which the pipeline has run; it is the current folder."""
    root = tmp_path / "toy"
    shutil.copytree(first_run[0], root, symlinks=True)
    return enter(root, monkeypatch)


def make_toy(root: Path) -> Path:
    shutil.copytree(TOY, root, ignore=shutil.ignore_patterns("__pycache__"))
    # under its own name here, since DVC takes every dvc.yaml below the clone as its own
    (root / "stages.yaml").rename(root / "dvc.yaml")
    Repo.init(str(root), no_scm=True)
    return root


def enter(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(root)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return root


def change(root: Path, old: str, new: str) -> None:
    """Edit params.yaml."""
    text = (root / "params.yaml").read_text()
    assert old in text
    (root / "params.yaml").write_text(text.replace(old, new))


def task_runs(state: State) -> dict[str, TaskRun]:
    """The task runs of a flow run, by name, as the server knows them."""
    run = state.state_details.flow_run_id
    assert run is not None
    with get_client(sync_client=True) as client:
        # the server stores them from events, a moment later
        runs = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])), limit=200
        )
    return {run.name: run for run in runs}


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python -m flows.pipeline` in the current folder, as a user does."""

    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flows.pipeline"],
            env={
                **os.environ,
                "PREFECT_HOME": str(tmp_path / "prefect"),
                "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
                **environment,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
