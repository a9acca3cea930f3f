"""The Prefect server: the configured one, or one that lives as long as this process."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import httpx
from prefect.client.orchestration import get_client
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

from efficientllava.errors import UserError
from flows.runner.dvc_files import UNFINISHED, is_readable
from flows.runner.guard import guarded, stop
from flows.runner.loopback import on_loopback, past_proxies, request
from flows.runner.recording import ASK_SECONDS, POLL_SECONDS, RECORDING, answers

LOOPBACK = "127.0.0.1"
_ERROR = re.compile(
    r"[\w.]*(Error|Exception|Exit|Interrupt)\b(: |$)|(sqlite3|alembic|sqlalchemy)\."
)
USUAL_PORT = 4200  # Prefect's own: links stay good when a server is started later
DRAIN_SECONDS = 10
"""For each of an answer, logs and events at the end of a run."""


class _Killed(UserError):
    """A signal ended our server while it started: nothing is wrong with it."""


@contextmanager
def prefect_server() -> Iterator[str]:
    """Yield the API URL of the configured server, or start one for the time of the block.

    The one that is started keeps its records in Prefect's home folder (`.prefect` here), shows
    its pages on the loopback interface while it runs, and ends with this process, even when
    that is killed.

    Raises:
        UserError: the configured server does not answer, or ours does not start.
    """
    configured = PREFECT_API_URL.value()
    if configured:
        with past_proxies() if on_loopback(configured) else nullcontext():
            _check(configured)
            yield from _used(configured, _is_healthy)
        return
    with past_proxies():
        yield from _own_server()


def _own_server() -> Iterator[str]:
    log_path = get_current_settings().home / "server.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    process, address = _started_at_last(log_path)
    try:
        yield from _used(address, partial(answers, address, ASK_SECONDS), process, log_path)
    finally:
        _end(process)


def _used(
    address: str,
    alive: Callable[[], bool],
    process: subprocess.Popen[str] | None = None,
    log_path: Path | None = None,
) -> Iterator[str]:
    """Yield the address of a server that is watched; what is queued reaches it at the end."""
    with (
        temporary_settings({PREFECT_API_URL: address}) as settings,
        RECORDING.watching(alive, settings, process, log_path),
    ):
        try:
            yield address
        finally:
            end = time.monotonic() + DRAIN_SECONDS
            while not RECORDING.gone.is_set() and not alive():
                if time.monotonic() > end:
                    RECORDING.lose("no answer at the end of the run")
                time.sleep(POLL_SECONDS)
            if not RECORDING.gone.is_set():
                # queued events are lost once the server is gone
                APILogWorker.drain_all(timeout=DRAIN_SECONDS)
                EventsWorker.drain_all(timeout=DRAIN_SECONDS)


def _started_at_last(log_path: Path) -> tuple[subprocess.Popen[str], str]:
    """As `_started`; once more where the database was damaged, or the server was killed."""
    try:
        return _started(log_path)
    except UserError as error:
        mended = _put_damaged_aside(log_path.with_name("prefect.db"))
        if not mended and not isinstance(error, _Killed):
            raise
        return _started(log_path)


def _started(log_path: Path) -> tuple[subprocess.Popen[str], str]:
    """Start a server that prints into a file: its guard, and the address of its API.

    Raises:
        UserError: it does not answer in time.
    """
    seconds = get_current_settings().server.ephemeral.startup_timeout_seconds
    # the socket is ours before the server starts: two runs that start together share no port
    with listening(USUAL_PORT) as listener, open(log_path, "w", encoding="utf-8") as log:
        address = f"http://{LOOPBACK}:{listener.getsockname()[1]}/api"
        process = guarded(
            [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
            + ["--fd", str(listener.fileno()), "--log-level", "error"],
            {
                **os.environ,
                **get_current_settings().to_environment_variables(exclude_unset=True),
                "PREFECT__SERVER_EPHEMERAL": "1",
                "PREFECT__SERVER_FINAL": "1",
            },
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[listener.fileno()],
        )
    try:
        _wait(process, address, seconds, log_path)
    except BaseException:
        _end(process)
        raise
    return process, address


def _end(process: subprocess.Popen[str]) -> None:
    stop(process)
    if process.stdin is not None:
        process.stdin.close()


def _put_damaged_aside(database: Path) -> bool:
    """Rename a database that SQLite cannot read; whether it was one."""
    if not database.is_file() or is_readable(database):
        return False
    aside = database.with_name(f"{database.name}{UNFINISHED}")
    database.rename(aside)
    for name in ("-wal", "-shm"):  # they belong to the old one
        Path(f"{database}{name}").unlink(missing_ok=True)
    print(
        f"warning: Prefect's database was damaged: it is {aside} now, and a new one is made; "
        "only the pages of earlier runs are lost",
        file=sys.stderr,
    )
    return True


def free_port(preferred: int = 0) -> int:
    """The wanted port of the loopback interface, or any when it is taken."""
    with listening(preferred) as listener:
        return int(listener.getsockname()[1])


def listening(preferred: int = 0) -> socket.socket:
    """A socket that listens at the wanted port of the loopback interface, or any when it is taken.

    Raises:
        UserError: no port is free.
    """
    for port in (preferred, 0):
        listener = socket.socket()
        # a port of which only closed connections are left is free
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
            listener.listen()
        except OSError:
            listener.close()
            continue
        return listener
    raise UserError("no free port", where=LOOPBACK)


def _is_healthy() -> bool:
    """Whether the configured server answers, through whatever proxy and with whatever key."""
    with get_client(sync_client=True) as client:
        return client.api_healthcheck() is None


def _check(address: str) -> None:
    with get_client(sync_client=True) as client:  # with whatever key is configured
        error = client.api_healthcheck()
    if error is not None:
        raise UserError(
            f"the Prefect server does not answer ({error})",
            where=f"PREFECT_API_URL {address}",
            remedy="start it (`prefect server start`), or unset PREFECT_API_URL to run with "
            "a server of our own",
        ) from error


def _wait(process: subprocess.Popen[str], address: str, seconds: float, log: Path) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            if request("GET", f"{address}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    said = last_error(log.read_text(encoding="utf-8", errors="replace"))
    ended = process.poll()
    how = f"does not answer after {seconds:g} s" if ended is None else f"ended (status {ended})"
    killed = ended is not None and not 0 <= ended <= 128  # the guard gives 128 + the signal
    raise (_Killed if killed else UserError)(
        f"it {how}" + (f": {said}" if said else ""),
        where="Prefect's server",
        remedy=f"see {log}"
        + ("; server.ephemeral.startup_timeout_seconds is the wait" if ended is None else ""),
    )


def last_error(text: str) -> str:
    """The last error that a program's log names, else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.match(line)]
    return [*lines[-1:], *errors[-1:]][-1] if lines else ""
