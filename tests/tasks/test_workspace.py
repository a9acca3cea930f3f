"""One run at a time, stages that end with whoever started them, and outputs that survive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from efficientllava.files import folder_digest
from tasks.runtime.workspace import workspace_lock
from tests.tasks.conftest import Workspace, clean_environment

# a stage that needs no torch, with all that stages share
STAGE = """
from pathlib import Path
from tasks.runtime.stage import run_stage

def work(stage):
    assert not Path("out").exists(), "DVC removes what a stage is about to write"
    Path("out").mkdir()
    Path("out/seed.txt").write_text(str(stage.parameters.search.seed))
    if stage.parameters.search.seed == 13:
        raise RuntimeError("a defect")

run_stage(work)
"""
DVC_YAML = """
stages:
  toy:
    cmd: python toy.py
    params: [search.seed, ratios]
    outs: [out]
"""


@pytest.fixture
def toy(workspace: Workspace) -> Workspace:
    (workspace.folder / "toy.py").write_text(STAGE)
    return workspace


def test_second_run_is_refused(toy: Workspace) -> None:
    with workspace_lock("the flow", toy.folder):
        # another run: one that the holder did not start
        outcome = toy.run("toy")
    assert outcome.status == 2
    assert "another run is working in this workspace" in outcome.error
    assert f"the flow, process {os.getpid()}" in outcome.error
    assert "Traceback" not in outcome.error
    assert not (toy.folder / "out").exists()


def test_stage_of_the_run_that_holds_the_lock_enters(toy: Workspace) -> None:
    with workspace_lock("the flow", toy.folder):
        toy.environment["EFFICIENTLLAVA_RUN"] = os.environ["EFFICIENTLLAVA_RUN"]
        assert toy.run("toy").status == 0
    assert "EFFICIENTLLAVA_RUN" not in os.environ


def test_lock_is_free_after_kill(workspace: Workspace) -> None:
    hold = (
        "import time; from tasks.runtime.workspace import workspace_lock\n"
        "with workspace_lock('the flow'): print('held', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold],
        cwd=workspace.folder,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    holder.kill()
    holder.wait()
    with workspace_lock("another", workspace.folder):
        pass


def test_stage_ends_with_the_run_that_started_it(workspace: Workspace) -> None:
    """A run is killed (-9): its stage must not compute on beside the next run."""
    stage = (
        "import time; from tasks.runtime.workspace import end_with_starter\n"
        "end_with_starter(); print('started', flush=True); time.sleep(60)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    orphan = subprocess.Popen(
        [sys.executable, "-c", stage],
        cwd=workspace.folder,
        env={**clean_environment(), "EFFICIENTLLAVA_RUN": str(run.pid)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert orphan.stdout is not None and orphan.stdout.readline() == "started\n"
    time.sleep(1.5)
    assert orphan.poll() is None
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert orphan.wait(timeout=20) == 137


@pytest.mark.parametrize(
    "change, told",
    [
        ({"search": {"seed": 12}, "ratios": [1.5]}, "ratios.0"),
        ({"search": {"seed": 13}}, "a defect"),
    ],
    ids=["bad parameter", "defect"],
)
def test_failed_stage_leaves_the_finished_outputs(
    toy: Workspace, change: dict[str, Any], told: str
) -> None:
    """DVC removes a stage's outputs before it runs; plain `dvc repro` must not lose them."""
    toy.add_dvc(DVC_YAML)
    done = toy.run("dvc", "repro")
    assert done.status == 0, done.error
    before = folder_digest(toy.folder / "out")

    toy.set_parameters(change)
    failed = toy.run("dvc", "repro")
    assert failed.status != 0
    assert told in failed.error
    assert folder_digest(toy.folder / "out") == before

    toy.set_parameters()
    assert "didn't change, skipping" in toy.run("dvc", "repro").output
