"""Run a command in a process group that ends with its parent, even after kill -9.

`python flows/runner/guard.py COMMAND ...` holds the reading end of a pipe on its standard input.
The starter never writes to it; when the starter dies, the kernel closes the pipe and the whole
group is killed. Without it a stage would compute on and its outputs would be lost,
and would still be writing when the next run starts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol


def guarded(
    command: Sequence[str], env: Mapping[str, str], **options: Any
) -> subprocess.Popen[str]:
    """Start `command` under a guard, as the leader of a session and process group of its own.

    The caller keeps the returned process' `stdin` open as long as it wants the command alive.
    """
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, *command],
        stdin=subprocess.PIPE,
        env=dict(env),
        text=True,
        errors="replace",
        start_new_session=True,
        **options,
    )


class Leader(Protocol):
    """A process that leads a group of its own."""

    @property
    def pid(self) -> int:
        """Its number, and that of its group."""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, when it has ended."""


def stop(process: Leader, patience: float = 5.0) -> None:
    """End a process group, that of a guarded process or of a stage: SIGTERM, then SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _watch() -> None:
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    """Run the command of this process' arguments; its exit status is ours."""
    # what its starter handed to it, a socket, is the command's
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, close_fds=False)
    # SIGTERM reaches the child too, being of the same group: wait for how it ends
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    threading.Thread(target=_watch, daemon=True).start()
    status = child.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
