"""A lock of DVC that nobody holds any more says so, and how to go on."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from efficientllava.errors import UserError
from flows.runner.graph import Changes

COMMAND = "/usr/bin/dvc repro --single-item model"


@pytest.fixture
def sleeper() -> Iterator[int]:
    process = subprocess.Popen(["sleep", "61"])
    yield process.pid
    process.kill()
    process.wait()


def lock(root: Path, *processes: int, kind: str = "write") -> Path:
    """What DVC leaves when it is killed in the middle of stage model."""
    path = root / ".dvc" / "tmp" / "rwlock"
    path.parent.mkdir(exist_ok=True)
    notes = [{"pid": process, "cmd": COMMAND} for process in processes]
    held = notes if kind == "read" else notes[0]
    path.write_text(json.dumps({kind: {str(root / "artifacts" / "model"): held}}))
    return path


@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_number_that_is_somebody_else_s_now(toy: Path, sleeper: int, kind: str) -> None:
    path = lock(toy, sleeper, kind=kind)
    os.utime(path, (1e9, 1e9))  # long before the sleeper was started
    with pytest.raises(UserError) as told:
        Changes(toy).why("model") if kind == "write" else _write(toy)
    message = str(told.value)
    assert f"process {sleeper} (`{COMMAND}`)" in message
    assert f"{sleeper} is now `sleep 61`" in message
    assert f"rm {path}" in message and "the lock is stale" in message
    path.unlink()  # as it says
    assert Changes(toy).why("model") == "it has not run yet"


def _write(root: Path) -> None:
    """What changes outputs is stopped by readers, where the question why is not."""
    from dvc.lock import LockError
    from dvc.repo import Repo

    from flows.runner.locks import lock_error

    with Repo(str(root)) as repo, repo.lock:
        [stage] = repo.stage.collect("model")
        try:
            stage.remove_outs(force=True)
        except LockError as error:
            raise lock_error(error, Path(repo.tmp_dir), "model") or error from error


def test_a_process_that_may_hold_it_is_named(toy: Path, sleeper: int) -> None:
    path = lock(toy, sleeper)
    with pytest.raises(UserError) as told:
        Changes(toy).why("model")
    message = str(told.value)
    assert (
        f"process {sleeper} (`{COMMAND}`) holds a lock; process {sleeper} is `sleep 61`" in message
    )
    assert "wait until the process has ended" in message and f"rm {path}" in message
    assert "stale" not in message


def test_a_process_that_is_gone_is_forgotten(toy: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    lock(toy, gone.pid)
    assert Changes(toy).why("model") == "it has not run yet"


@pytest.mark.parametrize("content", ["", '{"write": {"a', '{"written": 1}'])
def test_half_a_list_of_locks(toy: Path, content: str) -> None:
    path = lock(toy, os.getpid())
    path.write_text(content)
    with pytest.raises(UserError, match="half of it") as told:
        Changes(toy).why("model")
    assert f"rm {path}" in str(told.value)
