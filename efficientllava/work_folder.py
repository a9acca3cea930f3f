"""The folder for unfinished work: checked before it is used, locked by one process at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from efficientllava.errors import UserError
from efficientllava.files import read_json, require_place, write_json

LAYOUT = 1
"""Of a work folder; raised when what lies in one changes its meaning."""
MARKER, LOCK = "layout.json", "lock"
BEFORE = {MARKER, f".{MARKER}.tmp", LOCK}
"""Leftovers of a process that was killed while it made the folder."""


def require_work(work: Path) -> None:
    """Check that a work folder can be used; nothing is made or changed.

    Raises:
        UserError: it was written by another version, is something else, or cannot be written.
    """
    require_place(work, f"work folder {work}")
    if not work.exists():
        return
    marker = work / MARKER
    if not work.is_dir() or (
        not marker.is_file() and any(path.name not in BEFORE for path in work.iterdir())
    ):
        raise UserError(
            "holds something else than unfinished work of ours",
            where=f"work folder {work}",
            remedy="name an empty or a new folder",
        )
    if not marker.is_file():
        return
    content = read_json(marker)
    layout = content.get("layout") if isinstance(content, dict) else None
    if layout != LAYOUT:
        raise UserError(
            f"is of another version (layout {layout}, this is {LAYOUT})",
            where=f"work folder {work}",
            remedy="name another folder, or remove this one",
        )


@contextmanager
def locked(work: Path) -> Iterator[None]:
    """Hold a work folder for this process; made where it does not exist.

    Raises:
        UserError: see `require_work`; another process works in it.
    """
    require_work(work)
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = open(work / LOCK, "a", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot be written ({os.strerror(error.errno or 0)})",
            where=f"work folder {work}",
            remedy="name a folder that you may write",
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "another process is pruning in it",
                where=f"work folder {work}",
                remedy="wait for it or end it, or name another folder",
            ) from None
        if not (work / MARKER).is_file():
            write_json(work / MARKER, {"layout": LAYOUT})
        yield
