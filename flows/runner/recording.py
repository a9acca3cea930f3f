"""Records of a run on Prefect's server. When the server is gone, the run continues without it.

The server only shows a run; DVC keeps outputs, MLflow metrics. So a server that
ends, or answers no more, is reported once and fails no stage.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar
from urllib.parse import urlsplit

import httpx
import psutil
from prefect.events.clients import NullEventsClient
from prefect.events.worker import EventsWorker
from prefect.exceptions import TerminationSignal
from prefect.logging import get_logger
from prefect.logging.handlers import APILogHandler, PrefectConsoleHandler
from prefect.settings import Settings
from prefect.states import Cancelled, State

from efficientllava.errors import UserError

POLL_SECONDS = 0.1
ASK_SECONDS = 3.0
"""How often the server is asked whether it lives, and how long ours may take to answer."""
SILENT_SECONDS, STOPPED_SECONDS = 90.0, 10.0
"""After so long without an answer a server counts as lost; the second if ours is stopped.

On a machine with ten times more work than cores a healthy server was silent for 30 s.
"""
# errors that end a run on purpose; raised again where a lost server's error replaced them
STOPPED = (KeyboardInterrupt, SystemExit, TerminationSignal)

P = ParamSpec("P")
T = TypeVar("T")


class Recording:
    """Whether the server still takes records, and how the flow ended.

    Attributes:
        gone: set when the server has ended before its time, or answers no more.
        stopped: what ended the flow, where SIGTERM or Ctrl-C did.
    """

    def __init__(self) -> None:
        self.gone = threading.Event()
        self._warned = False
        self._ended: State[Any] | None = None
        self.stopped: BaseException | None = None

    def tell(self, send: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T | None:
        """Call a function that sends to the server; None when it cannot."""
        if self.gone.is_set():
            return None
        try:
            return send(*arguments, **named)
        except httpx.HTTPError as error:
            if not self.gone.wait(2 * POLL_SECONDS):  # `gone` has its own message
                self._warn(f"Prefect's server does not take it ({error})")
            return None

    def record_end(self, state: State[Any]) -> State[Any]:
        """Keep how the flow ends: the server may be unable to take it."""
        self._ended = state
        return state

    def until_stopped(self, run: Callable[[], State[Any]]) -> State[Any]:
        """How a flow ends: as `run` says, or Cancelled where SIGTERM or Ctrl-C ended it."""
        try:
            return run()
        except STOPPED as stop:
            self.stopped = stop
            return stopped_state(stop)

    def run(
        self, flow: Callable[P, State[Any]], *arguments: P.args, **named: P.kwargs
    ) -> State[Any]:
        """Run a flow that calls `record_end`; its state does not depend on the server.

        Raises:
            UserError: the server was gone before the flow had ended.
        """
        try:
            return flow(*arguments, **named)
        except Exception as error:
            causes = list(_causes(error))
            if not any(isinstance(cause, httpx.HTTPError) for cause in causes):
                raise
            for cause in causes:
                if isinstance(cause, STOPPED):
                    raise cause from None
            if self._ended is None:
                raise UserError(
                    f"cannot be used ({error})",
                    where="Prefect's server",
                    remedy="start again: it resumes",
                ) from error
            if not self.gone.wait(2 * POLL_SECONDS):
                self._warn(f"Prefect's server does not take the end of the run ({error})")
            return self._ended
        finally:
            self._ended = None

    @contextmanager
    def watching(
        self,
        alive: Callable[[], bool],
        settings: Settings,
        process: subprocess.Popen[str] | None = None,
        log: Path | None = None,
    ) -> Iterator[None]:
        """Notice when the server ends, or hangs, during the block.

        Args:
            alive: whether it answers; asked every few seconds.
            settings: those of Prefect's clients in this process.
            process: a server of ours, or its guard; the leader of a group that is killed when the
                server hangs, so that whoever waits for an answer goes on.
            log: where the last words of a server of ours are.
        """
        over, words = threading.Event(), "" if log is None else f"; its words are in {log}"

        def watch() -> None:
            heard = asked = time.monotonic()
            while not over.wait(POLL_SECONDS):
                if process is not None and (status := process.poll()) is not None:
                    settings.client.max_retries = 0
                    self.lose(f"exit status {status}{words}")
                    return
                if time.monotonic() - asked < ASK_SECONDS:
                    continue
                asked = time.monotonic()
                if alive():
                    heard = time.monotonic()
                elif (silent := time.monotonic() - heard) > _patience(process):
                    settings.client.max_retries = 0
                    self.lose(f"no answer for {silent:.0f} s{words}")
                    if process is not None:
                        os.killpg(process.pid, signal.SIGKILL)
                    return

        _silence_clients()
        watcher = threading.Thread(target=watch, daemon=True, name="prefect_server")
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()

    def lose(self, how: str) -> None:
        """Stop sending: clients would retry for minutes."""
        self.gone.set()
        EventsWorker.set_client_override(NullEventsClient)
        for logger, handler in _handlers():
            if isinstance(handler, APILogHandler):
                logger.removeHandler(handler)
        self._warn(
            f"Prefect's server has ended ({how}): "
            "the stages continue, its pages will not show the rest of this run"
        )

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            get_logger("pipeline").warning("%s", message)


def _silence_clients() -> None:
    """Keep Prefect's clients from printing every record that a lost server does not take."""
    logging.raiseExceptions = False  # else unsent records are printed on stderr
    logging.getLogger("prefect._internal.concurrency").disabled = True
    for _, handler in _handlers():
        if isinstance(handler, PrefectConsoleHandler):
            handler.addFilter(_complains_of_nothing)


def _handlers() -> list[tuple[logging.Logger, logging.Handler]]:
    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    return [(logger, handler) for logger in loggers for handler in list(logger.handlers)]


def answers(address: str, seconds: float) -> bool:
    """Whether a server on this machine answers anything within so many seconds.

    Not by httpx, which takes 24 ms of a processor for every new client.

    Args:
        address: of its API.
    """
    url = urlsplit(address)
    connection = HTTPConnection(url.hostname or "", url.port, timeout=seconds)
    try:
        connection.request("GET", f"{url.path}/health")
        return connection.getresponse().status > 0
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _patience(guard: subprocess.Popen[str] | None) -> float:
    """How long a server may be silent: that of a guard, or one that others started."""
    if guard is None:
        return SILENT_SECONDS
    try:
        states = {child.status() for child in psutil.Process(guard.pid).children(recursive=True)}
    except psutil.NoSuchProcess:
        return SILENT_SECONDS
    return STOPPED_SECONDS if psutil.STATUS_STOPPED in states else SILENT_SECONDS


def stopped_state(stop: BaseException) -> State[Any]:
    """The state of a flow or task that SIGTERM or Ctrl-C ended."""
    how = "Ctrl-C" if isinstance(stop, KeyboardInterrupt) else "SIGTERM"
    return Cancelled(message=f"stopped by {how}: the next run resumes")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and those in whose handling it was raised."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__context__


def _complains_of_nothing(record: logging.LogRecord) -> bool:
    """False for messages of Prefect's own clients about the lost server."""
    if record.name.startswith(("prefect.events", "prefect._internal", "prefect.EventsWorker")):
        return False
    if record.getMessage() == "Finished in state Running()":  # the state it could not be told
        return False
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, httpx.HTTPError)


RECORDING = Recording()


def end_process(status: int) -> NoReturn:
    """End this process with an exit status.

    Prefect's threads wait at the exit until everything is sent, for minutes without a server:
    without its server the process ends at once.
    """
    if RECORDING.gone.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
