"""The pages of MLflow and Prefect over this workspace's records: `python -m flows.ui`, `make ui`.

Servers that params.yaml and PREFECT_API_URL name are shown as they are. Where they name none, ours
are started, at the usual ports or, where these are taken, at others; Ctrl-C ends them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from prefect.settings import PREFECT_API_URL

from efficientllava.errors import UserError, without_users
from efficientllava.versions.connection import tracking_uri
from flows.runner.guard import guarded, stop
from flows.runner.loopback import past_proxies, request
from flows.server.pages import decision_page, is_server, model_page, prefect_page, runs_page
from flows.server.server import LOOPBACK, free_port
from flows.tracking.tracking import check_server, experiment_number
from tasks.runtime.stage import read_parameters

MLFLOW_PORT, PREFECT_PORT = 5000, 4200
PATIENCE = 300.0  # seconds until a server answers


@dataclass
class Server:
    """A server of ours.

    Attributes:
        log: where its words go.
    """

    name: str
    address: str
    process: subprocess.Popen[str]
    log: Path

    def wait(self, health: str) -> None:
        """Wait until it answers.

        Raises:
            UserError: it ends, or does not answer in time.
        """
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            self.require_running()
            try:
                if request("GET", self.address + health, timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.2)
        raise UserError(f"does not answer within {PATIENCE:g} s", where=self.where)

    def require_running(self) -> None:
        """Raise if it has ended.

        Raises:
            UserError: it has; with its last words.
        """
        if (status := self.process.poll()) is not None:
            said = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((line.strip() for line in reversed(said) if line.strip()), "no word")
            raise UserError(f"ended with status {status}: {without_users(last)}", where=self.where)

    @property
    def where(self) -> str:
        """What messages call it."""
        return f"{self.name} at {self.address}"


@contextmanager
def started(name: str, command: list[str], port: int, **environment: str) -> Iterator[Server]:
    """Start a server of ours for the time of the block.

    Args:
        command: of a module; host and port are added.
        port: the usual one; another is taken, and that is said, where it is not free.
    """
    chosen = free_port(port)
    if chosen != port:
        print(f"port {port} is taken by another program: {name} takes {chosen}", flush=True)
    address = f"http://{LOOPBACK}:{chosen}"
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with open(log, "w", encoding="utf-8") as words:
            process = guarded(
                [sys.executable, "-m", *command, "--host", LOOPBACK, "--port", str(chosen)],
                {**os.environ, **environment},
                stdout=words,
                stderr=subprocess.STDOUT,
            )
        try:
            yield Server(name, address, process, log)
        finally:
            stop(process)


def main() -> int:
    """Show the pages until Ctrl-C; 2 with a message where one cannot be shown."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    try:
        with past_proxies(), ExitStack() as servers:
            _show(servers)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0
    return 0


def _show(servers: ExitStack) -> None:
    tracking, root = read_parameters().tracking, Path.cwd()
    uri = tracking_uri(tracking, root)
    experiment = experiment_number(tracking, root)
    ours: list[tuple[Server, str]] = []

    def start(name: str, command: list[str], health: str, port: int, **environment: str) -> str:
        server = servers.enter_context(started(name, command, port, **environment))
        ours.append((server, health))
        return server.address

    mlflow, prefect = _mlflow(uri, start), _prefect(start)
    for server, health in ours:
        server.wait(health)
    print(f"MLflow   runs compared  {runs_page(mlflow, experiment)}")
    print(f"         decision       {decision_page(mlflow, experiment)}")
    print(f"         versions       {model_page(mlflow, tracking.registered_model)}")
    print(f"Prefect  runs           {prefect_page(prefect)}")
    print(f"Report   {(root / 'artifacts' / 'report' / 'report.html').as_uri()}")
    if not ours:
        return
    print("Ctrl-C ends the servers that were started here", flush=True)
    while True:
        for server, _ in ours:
            server.require_running()
        time.sleep(0.5)


def _mlflow(uri: str, start: Callable[..., str]) -> str:
    """The address of MLflow's pages."""
    if is_server(uri):
        check_server(uri)
        return uri
    command = ["mlflow", "server", "--workers", "1", "--backend-store-uri", uri]
    return start(
        "MLflow",
        command,
        "/health",
        MLFLOW_PORT,
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
        MLFLOW_DISABLE_TELEMETRY="true",
    )


def _prefect(start: Callable[..., str]) -> str:
    """The address of Prefect's API."""
    if configured := PREFECT_API_URL.value():
        return configured
    command = ["prefect", "server", "start"]
    environment = {"PREFECT_UI_API_URL": "/api"}
    return start("Prefect", command, "/api/health", PREFECT_PORT, **environment) + "/api"


if __name__ == "__main__":
    sys.exit(main())
