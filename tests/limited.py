"""Functions in forked children under limits of time and memory: what they print, how they end.

A child has what this process has imported, torch and transformers too: it starts in milliseconds.
Its memory is watched (resident pages, its own and its children's): an address-space limit would
count what torch only reserves.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 30.0
MEMORY = 4 * 2**30
EVERY = 0.02
"""Seconds between two looks at a child's memory."""
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        status: its exit status; negative for a signal.
        output: what it wrote to stdout and stderr.
        memory: most bytes seen resident, beyond those that it had from this process.
        limit: "time" or "memory" if it was killed for that, else empty.
    """

    status: int
    output: str
    seconds: float
    memory: int
    limit: str

    @property
    def last_line(self) -> str:
        """The last line that was printed."""
        return (self.output.strip().splitlines() or [""])[-1]


def limited(
    run: Callable[[], object], seconds: float = SECONDS, memory: int = MEMORY, folder: Any = None
) -> Ended:
    """Call a function in a fork, as the leader of a process group that ends with it.

    Args:
        folder: its working directory.
    """
    with tempfile.TemporaryFile() as printed:
        sys.stdout.flush()
        sys.stderr.flush()
        began = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            process = os.fork()
        if process == 0:
            _be_child(run, printed.fileno(), folder)
        limit, most = _watch(process, began + seconds, memory)
        try:
            os.killpg(process, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended, and so has its group
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        printed.seek(0)
        output = printed.read().decode(errors="replace")
        return Ended(status, output, time.monotonic() - began, most, limit)


def _watch(process: int, end: float, memory: int) -> tuple[str, int]:
    """Wait until a child ends or passes a limit; the limit, and its most bytes."""
    handle = os.pidfd_open(process)
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        first, most = _resident(process), 0
        while not poll.poll(EVERY * 1000):
            most = max(most, _resident(process) - first)
            if most > memory:
                return "memory", most
            if time.monotonic() > end:
                return "time", most
        return "", most
    finally:
        os.close(handle)


def _resident(process: int) -> int:
    """Bytes of a process and its children; shared pages count in each."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return pages * PAGE + sum(_resident(int(child)) for child in children)


def _be_child(run: Callable[[], object], printed: int, folder: Any) -> None:
    status = 1
    try:
        os.setsid()
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)
        sys.stderr = open(2, "w", encoding="utf-8", errors="replace", closefd=False)
        if folder is not None:
            os.chdir(folder)
        run()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
