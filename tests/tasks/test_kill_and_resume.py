"""kill -9 in every stage and at three moments of the search: the hashes of an undisturbed run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import load_yaml

from tests.tasks.conftest import Workspace, clean_environment

pytestmark = pytest.mark.slow

LAST = "prune@efficientllava-0.5"
SEARCH = "search@efficientllava-0.5"
Moment = tuple[str, str, int, int | None]
"""Stage, and the first event after which it is killed: name, done, round."""
# and whether the whole process group is; else DVC alone, and the stage ends when it sees that,
# perhaps after its last round: so not where another moment of the same stage follows
MOMENTS: list[tuple[Moment, bool]] = [
    (("questions", "question", 1, None), True),
    (("model", "vision step", 1, None), False),
    (("proxy", "", 0, None), True),
    ((SEARCH, "block", 1, None), True),
    ((SEARCH, "candidate", 1, 1), True),
    ((SEARCH, "round", 1, 1), True),
    ((SEARCH, "candidate", 2, 3), False),
    ((LAST, "block", 1, None), True),
]


def hashes(folder: Path) -> dict[str, Any]:
    """Output hashes of every stage in dvc.lock but the one that writes down the parameters."""
    lock = load_yaml(str(folder / "dvc.lock"))["stages"]
    return {
        name: {out["path"]: out["md5"] for out in stage["outs"]}
        for name, stage in lock.items()
        if name != "parameters"
    }


def clone(folder: Path) -> Workspace:
    folder.mkdir()
    made = Workspace(folder)
    made.set_parameters()
    made.add_code()
    return made


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The hashes of a run from beginning to end."""
    made = clone(tmp_path_factory.mktemp("undisturbed") / "clone")
    done = made.run("dvc", "repro", LAST, timeout=1800)
    assert done.status == 0, done.error
    return hashes(made.folder)


def kill_at(workspace: Workspace, moment: Moment, group: bool) -> None:
    """Start `dvc repro` and kill it, or its whole process group, at a moment of a stage."""
    stage, name, done, number = moment
    events = workspace.folder / "events.jsonl"
    events.unlink(missing_ok=True)
    output = workspace.folder / "output.txt"
    with open(output, "w") as file:
        process = subprocess.Popen(
            workspace.command("dvc", "repro", LAST),
            cwd=workspace.folder,
            env={
                **clean_environment(),
                **workspace.environment,
                "EFFICIENTLLAVA_EVENTS": str(events),
            },
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        deadline = time.monotonic() + 900
        while not _reached(events, output, stage, name, done, number):
            assert process.poll() is None, f"ended before {moment}: {output.read_text()}"
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.01)
        if group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.send_signal(signal.SIGKILL)  # the stage sees that and ends itself
        process.wait()
    while _group_lives(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _reached(
    events: Path, output: Path, stage: str, name: str, done: int, number: int | None
) -> bool:
    if f"Running stage '{stage}'" not in output.read_text():
        return False
    if not name:
        time.sleep(2)
        return True
    if not events.exists():
        return False
    for line in events.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            event = json.loads(line)
            if (
                event["name"] == name
                and event["done"] >= done
                and event["values"].get("round") == number
            ):
                return True
    return False


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_killed_at_every_stage(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    made = clone(tmp_path / "clone")
    for moment, group in MOMENTS:
        kill_at(made, moment, group)
    done = made.run("dvc", "repro", LAST, timeout=1800)
    assert done.status == 0, done.error
    assert hashes(made.folder) == undisturbed


def test_search_goes_on_where_it_was_killed(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """Rounds that were finished are not run again."""
    made = clone(tmp_path / "clone")
    kill_at(made, (SEARCH, "candidate", 1, 3), group=True)
    events = made.folder / "events.jsonl"
    events.unlink()
    made.environment["EFFICIENTLLAVA_EVENTS"] = str(events)
    assert made.run("dvc", "repro", LAST, timeout=1800).status == 0
    rows = [json.loads(line) for line in events.read_text().splitlines()]
    rounds = {row["values"]["round"] for row in rows if row["name"] == "candidate"}
    assert rounds == {3}
    assert hashes(made.folder) == undisturbed


def test_more_rounds_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    made = clone(tmp_path / "clone")
    assert made.run("dvc", "repro", SEARCH, timeout=1800).status == 0
    folder = made.folder / "artifacts" / "search" / "efficientllava-0.5"
    first = (folder / "history.jsonl").read_text()
    events = made.folder / "events.jsonl"
    made.environment["EFFICIENTLLAVA_EVENTS"] = str(events)
    made.set_parameters({"search": {"rounds": 4}})
    assert made.run("dvc", "repro", SEARCH, timeout=1800).status == 0
    rows = [json.loads(line) for line in events.read_text().splitlines()]
    assert {row["values"]["round"] for row in rows if row["name"] == "candidate"} == {4}
    assert (folder / "history.jsonl").read_text().startswith(first)


def test_another_clone_gives_the_same_bytes(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """Also with another number of workers, which changes no result."""
    made = clone(tmp_path / "clone")
    made.set_parameters({"machine": {"workers": 2}})
    assert made.run("dvc", "repro", LAST, timeout=1800).status == 0
    assert hashes(made.folder) == undisturbed
    assert made.run("dvc", "repro", LAST).output.count("didn't change, skipping") == 6
    shutil.rmtree(made.folder)
