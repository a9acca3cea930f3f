"""`make ui`: whose pages are shown, and at which ports."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import flows.ui
from efficientllava.errors import UserError
from efficientllava.parameters import TrackingParameters
from flows.server.pages import model_page, pages, prefect_page, runs_page
from flows.ui import started
from tests.flows.conftest import ROOT

SERVER = """
import argparse, http.server, sys
parser = argparse.ArgumentParser()
parser.add_argument("--host"), parser.add_argument("--port", type=int)
parser.add_argument("--fails", action="store_true")
given = parser.parse_args()
if given.fails:
    sys.exit("a database of another version\\n")
handler = http.server.SimpleHTTPRequestHandler
http.server.HTTPServer((given.host, given.port), handler).serve_forever()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that serves pages."""
    (tmp_path / "pages_of_a_test.py").write_text(SERVER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "pages_of_a_test"


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that another program has."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_taken_port_is_told_and_another_one_taken(
    module: str, taken: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with started("Pages", [module], taken) as server:
        server.wait("/")
        port = int(server.address.rpartition(":")[2])
        assert port != taken
        said = f"port {taken} is taken by another program: Pages takes {port}"
        assert said in capsys.readouterr().out
        process = server.process
    assert process.poll() is not None
    with pytest.raises(httpx.HTTPError):
        httpx.get(server.address, trust_env=False)


def test_the_last_words_of_a_server_that_ends_are_told(module: str) -> None:
    with started("Pages", [module, "--fails"], 0) as server:
        with pytest.raises(UserError, match="ended with status 1: a database of another version"):
            server.wait("/")


def test_links_are_those_of_the_servers_that_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_UI_URL"):
        monkeypatch.delenv(name, raising=False)
    local, remote = TrackingParameters(), TrackingParameters(uri="http://me:secret@host:5000/")
    assert pages(local, tmp_path, "1") == []  # nothing runs on its own
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect:4200/api")
    found = dict(pages(remote, tmp_path, "7"))
    assert found == {
        "runs compared": "http://host:5000/#/experiments/7/runs?viewStateShareKey=summary",
        "decision": "http://host:5000/#/experiments/7/runs"
        "?viewStateShareKey=summary&compareRunsMode=CHART",
        "versions": "http://host:5000/#/models/efficientllava",
        "stages and rounds": "http://prefect:4200/runs",
    }
    assert model_page("http://a", "it's odd/x").endswith("/#/models/it%27s%20odd%2Fx")
    assert prefect_page("http://a/api/") == "http://a/runs"
    assert "secret" not in runs_page("http://me:secret@host", "1")


def test_a_workspace_without_runs_is_told(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flows.ui.main() == 2
    assert "there is no such experiment yet" in capsys.readouterr().err


@pytest.mark.slow  # starts both servers
def test_both_servers_show_their_pages(finished: Path, tmp_path: Path) -> None:
    # a shell's background jobs, which tests may run in, ignore Ctrl-C, and their children too
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "flows.ui"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(tmp_path / "prefect")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Ctrl-C"):
                break
        addresses = re.findall(r"http://127\.0\.0\.1:\d+", "".join(lines))
        assert len(addresses) == 4 and "viewStateShareKey=summary" in "".join(lines), lines
        for address in addresses:
            assert httpx.get(address, trust_env=False, follow_redirects=True).status_code == 200
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            process.kill()
    assert process.returncode == 0
    for address in addresses:
        with pytest.raises(httpx.HTTPError):
            httpx.get(address, trust_env=False)
