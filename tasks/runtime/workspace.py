"""One run at a time in a workspace; a stage whose parent has ended ends itself."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from efficientllava.errors import UserError, disk_error

LOCK = Path(".work/lock")
HOLDER = "EFFICIENTLLAVA_RUN"  # process id of the run that holds the lock, for its stages


@contextmanager
def workspace_lock(who: str, root: Path | None = None) -> Iterator[None]:
    """Hold the workspace for a run; stages that the block starts are part of it.

    A stage that is started by the run which holds the lock (the flow) enters without waiting. The
    kernel drops the lock when its holder ends, however it ends.

    Args:
        who: this run's name in the message to a second run, e.g. "stage search".
        root: the workspace; the current folder when not given.

    Raises:
        UserError: another run holds the workspace, or it cannot be written.
    """
    if HOLDER in os.environ:
        yield
        return
    path = (root or Path.cwd()) / LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path, "a+", encoding="utf-8")
    except OSError as error:
        raise disk_error(error, path) or error from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"another run is working in this workspace ({file.read().strip() or 'unknown'})",
                where=str(path.parent.parent.resolve()),
                remedy="wait for it or end it; to run side by side, use a clone for each",
            ) from None
        file.truncate(0)
        file.write(f"{who}, process {os.getpid()}\n")
        file.flush()
        os.environ[HOLDER] = str(os.getpid())
        try:
            yield
        finally:
            del os.environ[HOLDER]
            file.truncate(0)


def end_with_starter() -> None:
    """End this stage when the DVC process or the run that started it is gone (kill -9).

    Otherwise it would compute beside the next run, and its outputs would be lost.
    """
    parent = os.getppid() if "DVC_STAGE" in os.environ else None
    holder = int(os.environ.get(HOLDER, 0))

    def watch() -> None:
        while True:
            time.sleep(0.5)
            if (parent and os.getppid() != parent) or (holder and not _alive(holder)):
                os._exit(137)

    if parent or holder:
        threading.Thread(target=watch, daemon=True, name="end_with_starter").start()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
