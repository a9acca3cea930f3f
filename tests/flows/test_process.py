"""Processes end with whoever started them; a stage's words and events arrive in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo

from flows.runner.graph import Changes, Node, read_graph, why
from flows.runner.guard import guarded, stop
from flows.runner.host import StageHost
from flows.runner.process import StageProcess, reproduce
from tests.flows.conftest import ROOT


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")
    return not state.exists() or ") Z " not in state.read_text()


def wait_until_gone(process: int, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while alive(process) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(process)


@contextmanager
def stage_of(
    root: Path, name: str, environment: dict[str, str] | None = None
) -> Iterator[StageProcess]:
    with StageHost(1) as host, reproduce(host, root, Node(name, ()), environment or {}) as stage:
        yield stage


SLEEPER = "sh -c 'sleep 600 & echo $!; wait'"  # prints the process id of a grandchild


def test_kill_9_of_the_starter_ends_the_grandchildren() -> None:
    code = (
        "import os, subprocess, sys, time\n"
        "from flows.runner.guard import guarded\n"
        f"p = guarded(['sh', '-c', {SLEEPER!r}], os.environ, stdout=subprocess.PIPE)\n"
        "print(p.stdout.readline().strip(), flush=True)\n"
        "time.sleep(600)\n"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert starter.stdout is not None
    grandchild = int(starter.stdout.readline())
    assert alive(grandchild)
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    starter.stdout.close()
    assert wait_until_gone(grandchild)


def test_stop_ends_the_group_even_if_it_ignores_sigterm() -> None:
    command = ["sh", "-c", "trap '' TERM; sleep 600 & echo $!; wait; wait"]
    process = guarded(command, os.environ, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdin is not None
    grandchild = int(process.stdout.readline())
    stop(process, patience=0.5)
    process.stdout.close()
    process.stdin.close()
    assert wait_until_gone(grandchild)


def test_exit_status_passes_through() -> None:
    process = guarded(["sh", "-c", "exit 7"], os.environ)
    assert process.wait() == 7
    stop(process)


def test_stage_tells_lines_and_events(toy: Path) -> None:
    assert why(toy, "model") == "it has not run yet"
    with stage_of(toy, "model") as stage:
        messages = list(stage.messages())
    assert stage.ran and stage.status == 0
    assert "working on model ".strip() in [str(m).strip() for m in messages]
    events = [m for m in messages if not isinstance(m, str)]
    assert [(e.name, e.done, e.total, e.values) for e in events] == [
        ("training", 1, 2, {"loss": 1.0}),
        ("training", 2, 2, {"loss": 0.5}),
    ]
    assert why(toy, "model") is None


def test_why_names_what_changed(toy: Path) -> None:
    with stage_of(toy, "model") as stage:
        list(stage.messages())
    (toy / "params.yaml").write_text(
        (toy / "params.yaml").read_text().replace("{seed: 0}}", "{seed: 3}}")
    )
    (toy / "stage.py").write_text((toy / "stage.py").read_text() + "\n")
    (toy / "artifacts/model/config.json").unlink()
    assert why(toy, "model") == (
        "model.demo.seed was 0, is 3; input stage.py modified; output artifacts/model modified"
    )


def test_changes_asks_dvc_once_until_a_stage_runs(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stage_of(toy, "model") as stage:
        list(stage.messages())
    asked: list[Any] = []
    status = Repo.status

    def counted(repo: Repo, targets: list[str] | None = None) -> Any:
        asked.append(targets)
        return status(repo, targets=targets)

    monkeypatch.setattr(Repo, "status", counted)
    changes = Changes(toy)
    told = {node.name: changes.why(node.name) for node in read_graph(toy)}
    assert told.pop("model") is None
    assert set(told.values()) == {"it has not run yet"}
    assert asked[0] is None and ["model"] not in asked
    changes.stage_runs()
    (toy / "artifacts/model/config.json").unlink()
    assert changes.why("model") == "output artifacts/model modified"
    assert asked.count(None) == 1 and ["model"] in asked


def test_why_names_no_password(toy: Path) -> None:
    with stage_of(toy, "model") as stage:
        list(stage.messages())
    values = (toy / "params.yaml").read_text()
    address = '"http://user:password@host/v1"'
    (toy / "params.yaml").write_text(values.replace("{seed: 0}}", f"{{seed: {address}}}}}"))
    assert why(toy, "model") == "model.demo.seed was 0, is http://***@host/v1"


@pytest.mark.parametrize("status", [2, 3])
def test_failed_stage_has_the_status_of_its_command(toy: Path, status: int) -> None:
    with stage_of(toy, "model") as stage:
        list(stage.messages())
    failing = {"TOY_FAILS": f"search magnitude-0.5 {status}"}
    with stage_of(toy, "search@magnitude-0.5", failing) as stage:
        list(stage.messages())
    assert stage.status == status
    assert stage.message == "error: params.yaml: search.rounds cannot work\n  -> mend it"


def test_leaving_early_kills_the_stage(toy: Path) -> None:
    with stage_of(toy, "model") as stage:
        list(stage.messages())
    slow = {"TOY_FAILS": "search magnitude-0.5 sleep"}
    with stage_of(toy, "search@magnitude-0.5", slow) as stage:
        for message in stage.messages():
            if str(message).startswith("working on search"):
                break
    assert stage.process.poll() is not None
    table = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True).stdout
    group = [
        state
        for pgid, state in map(str.split, table.splitlines())
        if int(pgid) == stage.process.pid
    ]
    assert all(state.startswith("Z") for state in group)
