"""A cron schedule fires, with a real server and a real runner."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


def completed_runs(api: str) -> list[dict]:
    query = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    return httpx.post(f"{api}/flow_runs/filter", json=query, timeout=20).json()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["serve", "deploy"])
def test_cron_fires(way: str, toy: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    api = f"http://127.0.0.1:{port}/api"
    environment = {
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    server_log, log = tmp_path / "server.log", tmp_path / "log"
    server = ("prefect", "server", "start", "--host", "127.0.0.1", "--port", port)
    with running(server_log, *server, **environment):
        for _ in wait("the server did not start", 300, server_log):
            try:
                if httpx.get(f"{api}/health", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                continue
        if way == "serve":
            worker = ("flows.serve", "--cron", "* * * * *")
        else:
            text = (ROOT / "prefect.yaml").read_text()
            (toy / "prefect.yaml").write_text(text.replace('"0 3 * * *"', '"* * * * *"'))
            (toy / "flows").symlink_to(ROOT / "flows")
            for setup in ("work-pool create workspaces --type process", "--no-prompt deploy --all"):
                subprocess.run(
                    [sys.executable, "-m", "prefect", *setup.split()],
                    env={**os.environ, **environment},
                    check=True,
                )
            worker = ("prefect", "worker", "start", "--pool", "workspaces")
        with running(log, *worker, **environment):
            for _ in wait("nothing was completed", 600, log):
                if runs := completed_runs(api):
                    break
    assert runs[0]["auto_scheduled"]
    assert (toy / "artifacts" / "report" / "table.md").is_file()
