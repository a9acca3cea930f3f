"""`files` writes a file whole or not at all; `disk_error` names what the disk refuses."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from efficientllava.data.proxy import ProxyData
from efficientllava.database import build
from efficientllava.database.build import build_database
from efficientllava.database.solutions import MANIFEST
from efficientllava.errors import UserError, disk_error
from efficientllava.files import (
    folder_digest,
    read_json,
    require_place,
    write_json,
    write_text,
)
from efficientllava.models.families import Adapter
from efficientllava.parameters import ObsParameters


def test_a_file_is_flushed_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "b"
    flushed: list[tuple[int, bool]] = []
    fsync = os.fsync

    def watched(file: int) -> None:
        flushed.append((os.fstat(file).st_size, target.exists()))
        fsync(file)

    monkeypatch.setattr(os, "fsync", watched)
    write_text(target, "text")
    assert flushed == [(4, False)] and target.read_text() == "text"


def test_a_place_is_tried_before_the_work(tmp_path: Path) -> None:
    """/proc takes nothing, whatever the permissions say; nothing stays of the trial."""
    for path in (Path("/proc/a/b"), tmp_path / "a" / ("b" * 300) / "c"):
        with pytest.raises(UserError, match=r"--output: cannot be written \("):
            require_place(path, "--output")
    require_place(tmp_path / "a" / "b", "--output")
    require_place(tmp_path, "--output")
    (tmp_path / "file").touch()
    require_place(tmp_path / "file", "--output")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(UserError, match=r"writing /proc/a/b: its folder cannot be made"):
        write_json(Path("/proc/a/b"), 1)


def database(adapter: Adapter, proxy: ProxyData, folder: Path, work: Path) -> str:
    build_database(adapter, proxy, [0.5], ObsParameters(), folder, work, {})
    return folder_digest(folder)


def test_finished_blocks_survive_a_full_disk(
    tmp_path: Path, adapter: Adapter, proxy: ProxyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last file finds no room: all blocks are still there for the next start."""

    whole = database(adapter, proxy, tmp_path / "whole", tmp_path / "w")
    write = build.write_sealed

    def full(path: Path, values: Any) -> None:
        if path.name == MANIFEST:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, values)

    with monkeypatch.context() as patched:
        patched.setattr(build, "write_sealed", full)
        with pytest.raises(OSError, match="No space left"):
            database(adapter, proxy, tmp_path / "db", tmp_path / "work")
    assert not (tmp_path / "db").exists()
    blocks = list((tmp_path / "work").rglob("*.safetensors"))
    kept = [path.stat().st_mtime_ns for path in sorted(blocks)]
    assert len(blocks) == len(adapter.blocks)
    assert database(adapter, proxy, tmp_path / "db", tmp_path / "work") == whole
    again = sorted((tmp_path / "db").glob("*.safetensors"))
    assert [path.stat().st_mtime_ns for path in again] == kept
    assert not any((tmp_path / "work").iterdir())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "", "/a"), "writing /a: the disk is full (No space left on device)"),
        (OSError(errno.EFBIG, "", "/a"), "writing /a: the disk is full (File too large)"),
        (OSError(errno.EROFS, "", "/a"), "/a: it cannot be written (Read-only file system)"),
        (OSError(errno.EACCES, "", "/a"), "/a: it cannot be written (Permission denied)"),
        (SafetensorError("I/O error: File too large (os error 27)"), "the disk is full"),
        (sqlite3.OperationalError("database or disk is full"), "the disk is full"),
        (sqlite3.OperationalError("attempt to write a readonly database"), "cannot be written"),
        (RuntimeError("unexpected error - [Errno 28] No space left on device"), "disk is full"),
        (FileNotFoundError(errno.ENOENT, "", "/a"), None),
        (sqlite3.OperationalError("no such table: runs"), None),
        (ValueError("28"), None),
    ],
)
def test_errors_about_a_disk_are_told_in_one_message(error: Exception, words: str | None) -> None:
    message = disk_error(error)
    assert (message is None) == (words is None)
    if words is not None:
        assert words in str(message) and len(str(message).splitlines()) == 2


def test_a_limit_of_a_file_s_size_leaves_what_was_there(tmp_path: Path) -> None:
    """A real EFBIG: a process that may write 2,000 bytes."""
    path = tmp_path / "a.json"
    write_json(path, "before")
    code = (
        "import resource, sys\n"
        "from efficientllava.files import write_json\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "write_json(sys.argv[1], 'x' * 5000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert "UserError: writing" in done.stderr and "File too large" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert read_json(path) == "before"
