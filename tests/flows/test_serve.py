"""A cron schedule fires, with a real server and a real runner."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from efficientllava.errors import UserError
from flows.serve import main, schedule, serve
from tests.flows.conftest import ROOT


def test_what_is_no_schedule_is_told() -> None:
    with pytest.raises(UserError, match="no schedule"):
        schedule("every night", "UTC")
    with pytest.raises(UserError, match="no schedule"):
        schedule("0 3 * * *", "Middle/Earth")
    assert schedule("0 3 * * *", "Europe/Berlin").timezone == "Europe/Berlin"


def test_serving_needs_a_lasting_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["serve", "--cron", "* * * * *"])
    # another test's server may be configured in this process: then it would serve for ever
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        with pytest.raises(UserError, match="PREFECT_API_URL"):
            serve(schedule("* * * * *", "UTC"), "test")
        assert main() == 2


@contextmanager
def running(log: Path, *command: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env={**os.environ, **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:  # a worker waits for the run that was due meanwhile
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def wait(what: str, seconds: float, log: Path) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(1)
    pytest.fail(f"{what}\n{log.read_text()}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A permanent server; the variables by which a process finds it."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    api = f"http://127.0.0.1:{port}/api"
    environment = {
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_RUNNER_POLL_FREQUENCY": "3",
    }
    command = ("prefect", "server", "start", "--host", "127.0.0.1", "--port", port)
    with running(folder / "log", *command, **environment):
        for _ in wait("the server did not start", 300, folder / "log"):
            try:
                if httpx.get(f"{api}/health", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                continue
        yield environment


def post(server: dict[str, str], path: str, **body: object) -> Any:
    return httpx.post(f"{server['PREFECT_API_URL']}/{path}", json=body, timeout=20).json()


def runs_of(server: dict[str, str], deployment: str, **states: list[str]) -> list[dict[str, Any]]:
    """Flow runs of a deployment, the oldest first; all, or those in these states."""
    found = post(
        server,
        "flow_runs/filter",
        deployments={"name": {"any_": [deployment]}},
        flow_runs={"state": {name: {"any_": values} for name, values in states.items()}},
        sort="EXPECTED_START_TIME_ASC",
    )
    return list(found)


def tasks_of(server: dict[str, str], run: dict[str, Any]) -> dict[str, str]:
    found = post(server, "task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})
    return {task["name"]: task["state"]["name"] for task in found}


def is_paused(server: dict[str, str], name: str) -> bool:
    url = f"{server['PREFECT_API_URL']}/deployments/name/pipeline/{name}"
    return bool(httpx.get(url, timeout=20).json()["paused"])


@pytest.mark.slow
def test_a_worker_fires(server: dict[str, str], toy: Path, tmp_path: Path) -> None:
    """prefect.yaml's deployments, run by Prefect's own worker."""
    text = (ROOT / "prefect.yaml").read_text()
    (toy / "prefect.yaml").write_text(text.replace('"0 3 * * *"', '"* * * * *"'))
    (toy / "flows").symlink_to(ROOT / "flows")
    for setup in ("work-pool create workspaces --type process", "--no-prompt deploy --all"):
        subprocess.run(
            [sys.executable, "-m", "prefect", *setup.split()],
            env={**os.environ, **server},
            check=True,
        )
    log = tmp_path / "log"
    with running(log, "prefect", "worker", "start", "--pool", "workspaces", **server):
        for _ in wait("nothing was completed", 600, log):
            if runs := runs_of(server, "nightly", type=["COMPLETED"]):
                break
    assert runs[0]["auto_scheduled"]
    assert (toy / "artifacts" / "report" / "table.md").is_file()
    names = {item["name"] for item in post(server, "deployments/filter")}
    assert {"nightly", "weekly-comparison", "on-demand"} <= names


@pytest.mark.slow
def test_a_stopped_schedule_piles_up_nothing(
    server: dict[str, str], toy: Path, tmp_path: Path
) -> None:
    """It fires, is stopped in the middle of a run, started again: what was missed is dropped."""
    log = tmp_path / "log"
    command = ("flows.serve", "--cron", "* * * * * */20", "--name", "cron")
    with running(log, *command, **server, TOY_WAITS="evaluate dense") as process:
        for _ in wait("no run began", 300, log):
            if "working on evaluate dense" in log.read_text():
                break
        for _ in wait("nothing else became due", 100, log):  # while the first one works
            if len(runs_of(server, "cron", name=["Late", "Cancelled"])) > 0:
                break
        process.terminate()
        assert process.wait(60) == 0, log.read_text()
    [stopped] = [run for run in runs_of(server, "cron", type=["CANCELLED"]) if run["start_time"]]
    assert stopped["state"]["message"].startswith("stopped by SIGTERM")
    stages = tasks_of(server, stopped)
    assert stages["evaluate_dense"] == "Cancelled" and stages["model"] == "Completed"
    assert not runs_of(server, "cron", type=["SCHEDULED", "PENDING", "RUNNING", "CRASHED"])
    assert is_paused(server, "cron")

    (toy / "go_on").touch()
    # as after a power cut: the schedule is active, and nobody serves it
    found = httpx.get(f"{server['PREFECT_API_URL']}/deployments/name/pipeline/cron").json()
    post(server, f"deployments/{found['id']}/resume_deployment")
    for _ in wait("nothing is late", 300, log):
        if len(runs_of(server, "cron", name=["Late"])) > 1:
            break
    with running(log, *command, **server):
        for _ in wait("nothing was completed", 300, log):
            if runs := runs_of(server, "cron", type=["COMPLETED"]):
                break
        assert not is_paused(server, "cron")
        assert runs_of(server, "cron", name=["Missed"])
        assert not runs_of(server, "cron", name=["Late"])
    stages = tasks_of(server, runs[0])
    assert stages["model"] == "Cached" and stages["evaluate_dense"] == "Completed"
    assert runs[0]["name"] == "magnitude+sparsegpt 0.5 seed 0"


@pytest.mark.slow
def test_a_failed_run_calls_a_webhook(server: dict[str, str], toy: Path, tmp_path: Path) -> None:
    """By the automation that docs/pipeline.md shows, word for word."""
    page = (ROOT / "docs" / "pipeline.md").read_text(encoding="utf-8")
    [snippet] = [
        block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "Webhook" in block
    ]
    received: queue.Queue[dict[str, str]] = queue.Queue()

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.put(json.loads(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as hook:
        threading.Thread(target=hook.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{hook.server_address[1]}"
        program = tmp_path / "automation.py"
        program.write_text(snippet.replace("https://example.org/failed", url))
        made = [sys.executable, str(program)]
        subprocess.run(made, env={**os.environ, **server}, check=True, timeout=300)
        pipeline = [sys.executable, "-m", "flows.pipeline"]
        failing = {**os.environ, **server, "TOY_FAILS": "evaluate dense 1"}
        assert subprocess.run(pipeline, env=failing, timeout=600).returncode == 1
        told = received.get(timeout=120)
        hook.shutdown()
    assert told["run"] == "magnitude+sparsegpt 0.5 seed 0"
    assert "evaluate_dense failed" in told["why"]
