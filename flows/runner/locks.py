"""DVC's own locks of files, and who holds them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from dvc.exceptions import DvcException
from dvc.lock import LockError, make_lock
from dvc.rwlock import (
    RWLOCK_FILE,
    RWLOCK_LOCK,
    SCHEMA,
    RWLockFileCorruptedError,
    RWLockFileFormatError,
)
from voluptuous import Invalid

from efficientllava.errors import UserError
from efficientllava.files import write_text

CLOCK = 2.0
"""Seconds by which a process' start and a file's time may differ for the same moment."""


def lock_error(error: DvcException, tmp_dir: Path, stage: str) -> UserError | None:
    """The message for an error about DVC's locks; None when the error is about something else.

    DVC notes in `rwlock` which process works on which file. It forgets the note of a process that
    is gone, but not when another process has got its number.

    Args:
        tmp_dir: the folder in which DVC keeps its locks.
    """
    path = tmp_dir / RWLOCK_FILE
    if isinstance(error, RWLockFileCorruptedError | RWLockFileFormatError):
        return UserError(
            "DVC's list of locks is not readable: a killed process has left half of it",
            where=str(path),
            remedy=f"end whatever else runs DVC here, `rm {shlex.quote(str(path))}`, start again",
        )
    if not isinstance(error, LockError):
        return None
    holders = list(_holders(path))
    if not holders:
        return UserError(
            "another DVC process works in this workspace",
            where=f"stage {stage}",
            remedy="wait for it or end it, and start again",
        )
    stale = all(is_stale for _, is_stale in holders)
    remove = f"`rm {shlex.quote(str(path))}`"
    return UserError(
        "DVC holds its files to be in use: " + "; ".join(said for said, _ in holders),
        where=f"stage {stage}, {path}",
        remedy=f"the lock is stale: {remove}, and start again"
        if stale
        else "wait until the process has ended, or end it, and start again; "
        f"when it is not a DVC process of this workspace, {remove} first",
    )


def mend_locks(tmp_dir: Path) -> Iterator[str]:
    """Remove the notes of processes that have surely ended, and a list that is half written.

    Nobody else changes the list meanwhile. The notes of living processes stay.

    Args:
        tmp_dir: the folder in which DVC keeps its locks.

    Yields:
        What was done, in words.
    """
    path = tmp_dir / RWLOCK_FILE
    if not path.is_file():
        return
    try:
        with make_lock(str(tmp_dir / RWLOCK_LOCK), tmp_dir=str(tmp_dir)):
            try:
                values, written = SCHEMA(json.loads(path.read_bytes())), path.stat().st_mtime
            except (ValueError, Invalid):
                path.unlink()
                yield "DVC's list of locks was half written, by a process that was killed: removed"
                return
            kept = _of_living(values, written)
            if kept != values:
                write_text(path, json.dumps(kept))
                yield "DVC's list of locks named processes that have ended: they are forgotten"
    except LockError:
        return  # a DVC process is writing it


def _of_living(values: dict[str, Any], written: float) -> dict[str, Any]:
    """The list without the notes of processes that are gone, or whose number is another's now."""

    def lives(note: dict[str, Any]) -> bool:
        try:
            return not _holder(psutil.Process(int(note["pid"])), note["cmd"], written)[1]
        except psutil.NoSuchProcess:
            return False

    readers = {
        file: [note for note in notes if lives(note)] for file, notes in values["read"].items()
    }
    return {
        "read": {file: notes for file, notes in readers.items() if notes},
        "write": {file: note for file, note in values["write"].items() if lives(note)},
    }


def _holders(path: Path) -> Iterator[tuple[str, bool]]:
    """Every living process that the list names, in words, and whether it surely is another."""
    try:
        values, written = json.loads(path.read_text(encoding="utf-8")), path.stat().st_mtime
    except (OSError, ValueError):
        return  # changed in the meantime
    notes = [*values.get("write", {}).values()]
    notes += [note for readers in values.get("read", {}).values() for note in readers]
    for number, command in dict.fromkeys((int(note["pid"]), note["cmd"]) for note in notes):
        try:
            yield _holder(psutil.Process(number), command, written)
        except psutil.NoSuchProcess:
            continue


def _holder(process: Any, command: str, written: float) -> tuple[str, bool]:
    said = f"process {process.pid} (`{command}`) holds a lock"
    try:
        now = shlex.join(process.cmdline()) or process.name()
        stale = process.create_time() > written + CLOCK
    except psutil.AccessDenied:
        return f"{said}, and a process of that number runs", False
    if stale:
        return f"{said}, but has ended: {process.pid} is now `{now}`, which started later", True
    return f"{said}; process {process.pid} is `{now}`", False
