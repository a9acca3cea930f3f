"""The flow's side of the process of which its stages are forks (`stage_host`)."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TextIO

from flows.runner.loopback import environment_of_stages
from tasks.runtime.environment import thread_settings

PROGRAM = Path(__file__).with_name("stage_host.py")
GONE = 137  # exit status of what was killed
MODULES = (
    "transformers.modeling_utils",
    "transformers.processing_utils",
    "transformers.models.auto.processing_auto",
    "transformers.models.llava.modeling_llava",
    "transformers.models.clip.modeling_clip",
    "transformers.models.llama.modeling_llama",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "numba",
)
"""What stages that work with models import and what takes long; none of it touches a GPU."""


class Reproduction:
    """A running `dvc repro` of one stage, with what is used of `subprocess.Popen`.

    Attributes:
        pid: of its process, which leads a process group; 0 if the host was killed before it began.
        stdout: what it and its stage print.
    """

    def __init__(self, host: socket.socket, stdout: TextIO, starter: int) -> None:
        self._host, self.stdout, self._starter = host, stdout, starter
        self._status: int | None = None
        self.pid = self._answer()
        if not self.pid:
            self._status = GONE

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, when it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not ended after `timeout` seconds.
        """
        status = self._ended(timeout)
        if status is None:
            raise subprocess.TimeoutExpired("dvc repro", timeout or 0.0)
        return status

    def _ended(self, timeout: float | None) -> int | None:
        if self._status is None and select.select([self._host], [], [], timeout)[0]:
            self._status = self._answer(GONE)
        return self._status

    def _answer(self, none: int = 0) -> int:
        """The host's next answer; `none` if it was killed."""
        try:
            return int(self._host.recv(64) or none)
        except ConnectionError:
            return none

    def close(self) -> None:
        """Let go of its descriptors: what is left of its process group is killed."""
        self.stdout.close()
        os.close(self._starter)


class StageHost:
    """Starts stages as forks of one process, which itself is started for the first of them.

    Args:
        threads: `machine.threads`; BLAS reads it from the environment when it is loaded.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    def __enter__(self) -> StageHost:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def reproduce(
        self, root: Path, stage: str, environment: Mapping[str, str], models: bool
    ) -> Reproduction:
        """Start `dvc repro --single-item STAGE` in a workspace.

        Args:
            environment: all variables of its process.
            models: whether the stage works with models, and torch is to be there.
        """
        channel = self._started()
        printed, output = os.pipe()
        ended, starter = os.pipe()
        request = {
            "root": str(root),
            "stage": stage,
            "environment": dict(environment),
            "modules": MODULES if models else (),
        }
        with suppress(ConnectionError):  # the host was killed: it gives no answer
            socket.send_fds(channel, [json.dumps(request).encode()], [output, ended])
        os.close(output)
        os.close(ended)
        stdout = open(printed, encoding="utf-8", errors="replace")
        try:
            return Reproduction(channel, stdout, starter)
        except BaseException:
            self._end()  # what it says next would be taken for the answer to another request
            stdout.close()
            os.close(starter)
            raise

    def _started(self) -> socket.socket:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._channel is None:
            self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                descriptor = theirs.fileno()
                self._process = subprocess.Popen(
                    # by its path: what `-m` puts first is a workspace, which has other packages
                    [sys.executable, str(PROGRAM), str(descriptor)],
                    env={
                        **environment_of_stages(),
                        **thread_settings(self._threads),
                        "PYTHONUNBUFFERED": "1",
                    },
                    pass_fds=[descriptor],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
        return self._channel

    def _end(self) -> None:
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._channel = self._process = None
