"""Stages are forks of one process, and yet find what a process of their own would find."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from dvc.repo import Repo
from dvc.utils.serialize import dump_yaml

from flows.runner.graph import Node
from flows.runner.host import GONE, StageHost
from flows.runner.process import StageProcess, reproduce
from tests.flows.conftest import ROOT, enter
from tests.flows.test_process import wait_until_gone

PROBE = """
import json, os, sys, time
from pathlib import Path
from tasks import VALUE
Path("found.json").write_text(json.dumps({
    "name": __name__, "arguments": sys.argv[1:], "file": sys.argv[0], "path": sys.path[0],
    "folder": os.getcwd(), "value": VALUE, "stage": os.environ["DVC_STAGE"],
    "given": os.environ.get("GIVEN"), "process": os.getpid(), "torch": "torch" in sys.modules,
    "threads": sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None,
    "unbuffered": sys.stdout.write_through,
}))
Path("out").write_text("made")
print("working", flush=True)
"""


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its own package `tasks`, with one stage."""
    root = tmp_path / "workspace"
    (root / "tasks").mkdir(parents=True)
    (root / "tasks" / "__init__.py").write_text("VALUE = 1\n")
    (root / "tasks" / "probe.py").write_text(PROBE)
    command = "python -m tasks.probe --method dense"
    stage = {"cmd": command, "deps": ["tasks/probe.py", "tasks/__init__.py"], "outs": ["out"]}
    dump_yaml(str(root / "dvc.yaml"), {"stages": {"probe": stage}})
    Repo.init(str(root), no_scm=True)
    return enter(root, monkeypatch)


@pytest.fixture
def host() -> Iterator[StageHost]:
    with StageHost(2) as host:
        yield host


def run(host: StageHost, root: Path, models: bool = False) -> tuple[StageProcess, dict[str, Any]]:
    node = Node("probe", (), works_with_models=models)
    with reproduce(host, root, node, {"GIVEN": "here"}) as stage:
        list(stage.messages())
    found = root / "found.json"
    return stage, json.loads(found.read_text()) if found.exists() else {}


def test_a_stage_finds_what_python_m_would_give_it(workspace: Path, host: StageHost) -> None:
    stage, found = run(host, workspace)
    assert stage.status == 0 and stage.ran
    assert stage.lines == ["> python -m tasks.probe --method dense", "working"]
    assert found.pop("process") != stage.process.pid  # DVC's
    assert found == {
        "name": "__main__",
        "arguments": ["--method", "dense"],
        "file": str(workspace / "tasks" / "probe.py"),
        "path": str(workspace),
        "folder": str(workspace),
        "value": 1,
        "stage": "probe",
        "given": "here",
        "torch": False,
        "threads": None,
        "unbuffered": True,
    }


def test_every_stage_reads_our_code_anew(workspace: Path, host: StageHost) -> None:
    assert run(host, workspace)[1]["value"] == 1
    (workspace / "tasks" / "__init__.py").write_text("VALUE = 22\n")
    assert run(host, workspace)[1]["value"] == 22


def test_torch_is_there_with_the_threads_of_the_machine(workspace: Path, host: StageHost) -> None:
    stage, found = run(host, workspace, models=True)
    assert stage.status == 0
    assert found["torch"] and found["threads"] == 2


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        ("print('error: mend it', file=sys.stderr); sys.exit(2)", 2, "error: mend it"),
        ("sys.exit('error: mend it')", 1, "error: mend it"),
        ("raise ValueError('a defect')", 1, "ValueError: a defect"),
        ("os.kill(os.getpid(), 9)", GONE, "working"),
    ],
)
def test_how_a_stage_ends(
    end: str, status: int, said: str, workspace: Path, host: StageHost
) -> None:
    (workspace / "tasks" / "probe.py").write_text(PROBE + end + "\n")
    stage, _ = run(host, workspace)
    assert (stage.status, stage.message) == (status, said)
    (workspace / "tasks" / "probe.py").write_text(PROBE)
    assert run(host, workspace)[0].status == 0


def test_what_waits_at_the_exit_is_done(workspace: Path, host: StageHost) -> None:
    late = (
        "import atexit, threading\n"
        "threading.Thread(target=lambda: (time.sleep(0.3), print('thread'))).start()\n"
        "atexit.register(print, 'exit')\n"
    )
    (workspace / "tasks" / "probe.py").write_text(PROBE + late)
    assert run(host, workspace)[0].lines[1:] == ["working", "thread", "exit"]


def host_among(children: list[psutil.Process]) -> psutil.Process:
    """The stage host; other tests may have left children (a resource tracker, Dask)."""
    [host] = [child for child in children if any("stage_host" in part for part in child.cmdline())]
    return host


def test_the_host_dies_and_the_next_stage_has_another(workspace: Path, host: StageHost) -> None:
    (workspace / "tasks" / "probe.py").write_text(PROBE + "time.sleep(600)\n")
    with reproduce(host, workspace, Node("probe", ()), {}) as stage:
        for message in stage.messages():
            if message == "working":
                parent = host_among(psutil.Process().children())
                running = [child.pid for child in parent.children(recursive=True)]
                parent.kill()
                break
        assert stage.process.wait(10) == GONE
    assert len(running) == 2 and all(map(wait_until_gone, running))
    (workspace / "tasks" / "probe.py").write_text(PROBE)
    # names a process whose parent is gone: where no init reaps it, DVC takes it for a living one
    (workspace / ".dvc" / "tmp" / "rwlock").unlink(missing_ok=True)
    assert run(host, workspace)[0].status == 0


def test_kill_9_of_the_flow_ends_host_and_stage(workspace: Path) -> None:
    (workspace / "tasks" / "probe.py").write_text(PROBE + "time.sleep(600)\n")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\n"
        "from flows.runner.graph import Node\n"
        "from flows.runner.host import StageHost\n"
        "from flows.runner.process import reproduce\n"
        "with StageHost(1) as host:\n"
        "    with reproduce(host, Path.cwd(), Node('probe', ()), {}) as stage:\n"
        "        for message in stage.messages():\n"
        "            print(message, flush=True)\n"
    )
    flow = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert flow.stdout is not None
    assert any(line == "working\n" for line in iter(flow.stdout.readline, ""))
    processes = [child.pid for child in psutil.Process(flow.pid).children(recursive=True)]
    assert len(processes) == 3
    flow.send_signal(signal.SIGKILL)
    flow.wait()
    flow.stdout.close()
    assert all(map(wait_until_gone, processes))


def test_nothing_that_the_host_imports_asks_for_a_gpu() -> None:
    """A fork of a process that has used one cannot use it."""
    code = (
        "import importlib, torch\n"
        "from flows.runner.host import MODULES\n"
        "def asked(*_): raise AssertionError('a GPU is asked for')\n"
        "torch.cuda.is_available = torch.cuda.device_count = torch.cuda._lazy_init = asked\n"
        "list(map(importlib.import_module, MODULES))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_host_that_is_killed_before_it_answers(toy: Path) -> None:
    with StageHost(1) as host:
        with reproduce(host, toy, Node("model", ()), {}) as stage:
            list(stage.messages())
        assert stage.status == 0 and host._process is not None
        process = host._process
        process.send_signal(signal.SIGSTOP)
        threading.Timer(0.5, process.kill).start()
        with reproduce(host, toy, Node("evaluate_dense", ()), {}) as stage:
            list(stage.messages())
        assert stage.status == 137
        with reproduce(host, toy, Node("evaluate_dense", ()), {}) as stage:  # by a new one
            list(stage.messages())
        assert stage.status == 0
