"""Files that come from another file system: whole in their place, or not there."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from efficientllava.data.proxy import ProxyData
from efficientllava.database.build import build_database
from efficientllava.errors import UserError, disk_error
from efficientllava.files import (
    bring_file,
    folder_digest,
    read_json,
    require_place,
    write_json,
)
from efficientllava.models.families import Adapter
from efficientllava.parameters import ObsParameters

CROSS_DEVICE = OSError(errno.EXDEV, os.strerror(errno.EXDEV))


@pytest.fixture
def two_file_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every folder is a file system of its own: nothing can be renamed into another folder."""
    for name in ("rename", "replace"):
        within = getattr(os, name)

        def rename(source: Any, target: Any, within: Any = within, **options: Any) -> None:
            if Path(source).parent != Path(target).parent:
                raise CROSS_DEVICE
            within(source, target, **options)

        monkeypatch.setattr(os, name, rename)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on a second, real file system."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK) or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    folder = Path(tempfile.mkdtemp(dir=shared))
    yield folder
    shutil.rmtree(folder)


def test_a_file_is_renamed_where_that_is_possible(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_text("text")
    number = source.stat().st_ino
    bring_file(source, target)
    assert target.stat().st_ino == number and not source.exists()


def test_a_file_is_copied_from_another_file_system(tmp_path: Path, elsewhere: Path) -> None:
    (elsewhere / "a").write_text("text")
    bring_file(elsewhere / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "text"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_copy_is_flushed_before_it_takes_its_place(
    tmp_path: Path, two_file_systems: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    source, target = tmp_path / "from" / "a", tmp_path / "to" / "b"
    source.write_text("text")
    flushed: list[tuple[int, bool]] = []
    fsync = os.fsync

    def watched(file: int) -> None:
        flushed.append((os.fstat(file).st_size, target.exists()))
        fsync(file)

    monkeypatch.setattr(os, "fsync", watched)
    bring_file(source, target)
    assert flushed == [(4, False)] and target.read_text() == "text"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_copy_that_fails_leaves_nothing_and_keeps_the_source(
    number: int, tmp_path: Path, two_file_systems: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    source, target = tmp_path / "from" / "a", tmp_path / "to" / "b"
    source.write_text("text")

    def broken(source: Any, target: Any) -> None:
        Path(target).write_text("te")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(shutil, "copyfile", broken)
    with pytest.raises(UserError if number == errno.ENOSPC else OSError):
        bring_file(source, target)
    assert not any((tmp_path / "to").iterdir()) and source.read_text() == "text"


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


def test_a_missing_file_is_no_reason_to_copy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        bring_file(tmp_path / "none", tmp_path / "b")


def database(adapter: Adapter, proxy: ProxyData, folder: Path, work: Path) -> str:
    build_database(adapter, proxy, [0.5], ObsParameters(), folder, work, {})
    return folder_digest(folder)


def test_database_and_its_work_on_two_file_systems(
    tmp_path: Path, elsewhere: Path, adapter: Adapter, proxy: ProxyData
) -> None:
    plain = database(adapter, proxy, tmp_path / "plain", tmp_path / "work")
    assert database(adapter, proxy, tmp_path / "db", elsewhere / "work") == plain
    assert not any((elsewhere / "work").iterdir())


def test_database_that_cannot_be_renamed(
    tmp_path: Path, two_file_systems: None, adapter: Adapter, proxy: ProxyData
) -> None:
    database(adapter, proxy, tmp_path / "db", tmp_path / "work")
    assert sorted(path.suffix for path in (tmp_path / "db").iterdir()) == [
        ".json",
        *[".safetensors"] * len(adapter.blocks),
    ]


def test_finished_blocks_survive_a_full_disk(
    tmp_path: Path,
    two_file_systems: None,
    adapter: Adapter,
    proxy: ProxyData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last block's copy finds no room: all blocks are still there for the next start."""
    copyfile, copied = shutil.copyfile, []

    def full(source: Any, target: Any) -> None:
        copied.append(source)
        if len(copied) == len(adapter.blocks):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        copyfile(source, target)

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(UserError, match="disk is full"):
        database(adapter, proxy, tmp_path / "db", tmp_path / "work")
    assert len(list((tmp_path / "work").rglob("*.safetensors"))) == len(adapter.blocks)
    assert not (tmp_path / "db").exists()


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
