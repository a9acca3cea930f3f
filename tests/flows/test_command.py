"""`python -m flows.pipeline`: what is told before anything starts, and how signals end it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from dvc.utils.serialize import dump_yaml, load_yaml
from mlflow import MlflowClient

from tests.flows.conftest import change
from tools.chaos.faults import Server

Command = Callable[..., subprocess.CompletedProcess[str]]


def assert_told(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def test_misspelt_parameter(toy: Path, command: Command) -> None:
    change(toy, "rounds: 3", "rouns: 3")
    assert_told(command(), "search.rouns", "did you mean rounds?")


def test_second_run_in_the_workspace(toy: Path, command: Command) -> None:
    (toy / ".work").mkdir()
    with open(toy / ".work" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert_told(command(), "another run is working in this workspace")


def test_prefect_server_that_does_not_answer(toy: Path, command: Command) -> None:
    result = command(PREFECT_API_URL="http://127.0.0.1:9/api")
    assert_told(result, "PREFECT_API_URL http://127.0.0.1:9/api", "does not answer")


def test_mlflow_server_that_does_not_answer(toy: Path, command: Command) -> None:
    result = command(MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert_told(result, "http://127.0.0.1:9", "does not answer", "nothing has been run yet")


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGKILL, "has ended (exit status"),
        pytest.param(signal.SIGSTOP, "has ended (no answer for", marks=pytest.mark.slow),
    ],
)
def test_our_own_server_dies_or_hangs_during_a_stage(
    number: signal.Signals, said: str, toy: Path, tmp_path: Path
) -> None:
    def lose(flow: psutil.Process) -> None:
        [server] = [
            child
            for child in flow.children(recursive=True)
            if "uvicorn" in child.cmdline() and "guard.py" not in " ".join(child.cmdline())
        ]
        server.send_signal(number)

    require_told_once(toy, tmp_path, lose, said)


@pytest.mark.slow
def test_a_configured_server_dies_during_a_stage(toy: Path, tmp_path: Path) -> None:
    server = Server("prefect", toy, tmp_path / "server")
    server.start()
    try:
        said = "has ended (no answer for"
        require_told_once(toy, tmp_path, lambda flow: server.kill(), said, **server.variables)
    finally:
        server.end()


def require_told_once(
    toy: Path,
    tmp_path: Path,
    lose: Callable[[psutil.Process], None],
    said: str,
    **environment: str,
) -> None:
    """A run that loses its server in its second stage says so, and finishes."""
    # two stages are enough, of which the second waits until the server is dead
    stages = load_yaml(str(toy / "dvc.yaml"))["stages"]
    few = {name: stages[name] for name in ("model", "evaluate_dense")}
    dump_yaml(str(toy / "dvc.yaml"), {"stages": few})
    log = tmp_path / "log"
    process = start(tmp_path, log, TOY_WAITS="evaluate dense", **environment)
    try:
        wait_for(log, "working on evaluate dense")
        lose(psutil.Process(process.pid))
        wait_for(log, said)
        (toy / "go_on").touch()
        wait_for(log, "'promote' - Finished")
        assert process.wait(20) == 0, log.read_text()
    finally:
        process.kill()
    text = log.read_text()
    assert text.count("Prefect's server has ended") == 1
    assert "'evaluate_dense' - Finished in state Completed" in text
    assert "Traceback" not in text and "Error logging" not in text and "events" not in text
    assert (toy / "artifacts/evaluation/dense/scores.json").is_file()
    [version] = MlflowClient(f"sqlite:///{toy}/mlflow.db").search_model_versions("name = 'toy'")
    assert version.tags["accuracy"] == "0.9000"


@pytest.mark.slow
def test_our_own_server_is_found_past_proxies(toy: Path, command: Command) -> None:
    (toy / "dvc.yaml").write_text("stages: {}\n")  # told as soon as the server answers
    nowhere = "http://127.0.0.1:9"
    proxies = {"HTTP_PROXY": nowhere, "https_proxy": nowhere, "ALL_PROXY": "socks5://127.0.0.1:9"}
    result = command(**proxies, NO_PROXY="example.org", no_proxy="")
    assert_told(result, "declares no stage")


def start(tmp_path: Path, log: Path, **environment: str) -> subprocess.Popen[str]:
    home = str(tmp_path / "prefect")
    return subprocess.Popen(
        [sys.executable, "-m", "flows.pipeline"],
        env={
            **os.environ,
            "PREFECT_HOME": home,
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
            **environment,
        },
        stdin=subprocess.DEVNULL,
        stdout=open(log, "w"),
        stderr=subprocess.STDOUT,
        text=True,
        # tests that run in a shell's background inherit an ignored Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for(log: Path, words: str, seconds: float = 900.0) -> None:
    end = time.monotonic() + seconds
    while words not in log.read_text():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.2)


def group_of(words: str) -> list[str]:
    """Processes whose command line holds the words."""
    found = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True).stdout
    return [line for line in found.splitlines() if words in line and " ps " not in line]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_signals_leave_no_process_and_the_next_run_goes_on(
    number: signal.Signals, toy: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    process = start(tmp_path, log, TOY_FAILS="search sparsegpt-0.5 sleep")
    try:
        wait_for(log, "working on search sparsegpt-0.5")
        process.send_signal(number)
        assert process.wait(60) != 0
    finally:
        process.kill()
    if number != signal.SIGKILL:
        assert process.returncode == (143 if number == signal.SIGTERM else 130)
        stopped = log.read_text()
        assert "'search@sparsegpt-0.5' - Finished in state Cancelled('stopped by" in stopped
        assert "Crashed" not in stopped and "Traceback" not in stopped, stopped
    time.sleep(2)
    assert group_of("stage.py search sparsegpt-0.5") == []
    assert group_of(str(toy)) == []
    again = start(tmp_path, log)
    assert again.wait(900) == 0, log.read_text()
    text = log.read_text()
    if number == signal.SIGKILL:
        assert "marked 1 earlier run(s) as Crashed" in text
    assert "'search@magnitude-0.5' - Finished in state Cached" in text
    assert "champion: version" in text
    assert "Traceback" not in text


@pytest.mark.slow
def test_a_damaged_database_of_our_server_is_put_aside(
    toy: Path, tmp_path: Path, command: Command
) -> None:
    (toy / "dvc.yaml").write_text("stages: {}\n")  # told as soon as the server answers
    home = tmp_path / "prefect"
    home.mkdir()
    (home / "prefect.db").write_bytes(os.urandom(20000))
    result = command()
    assert_told(result, "declares no stage", "Prefect's database was damaged")
    assert (home / "prefect.db.unfinished").is_file()
