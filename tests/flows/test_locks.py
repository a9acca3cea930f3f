"""Locks and files that a killed DVC leaves: mended before a run, or named with the way to go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from efficientllava.errors import UserError
from flows.runner.dvc_files import main, mend
from flows.runner.graph import Changes, read_graph
from tests.flows.conftest import ROOT, make_toy

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


@pytest.mark.parametrize("content", ["", '{"write": {"a', '{"written": 1}'])
def test_half_a_list_of_locks_is_removed_before_a_run(toy: Path, content: str) -> None:
    lock(toy, os.getpid()).write_text(content)
    [said] = mend(toy)
    assert "half written" in said
    assert Changes(toy).why("model") == "it has not run yet"
    assert list(mend(toy)) == []


@pytest.mark.parametrize("kind", ["read", "write"])
def test_locks_of_ended_processes_are_removed_before_a_run(
    toy: Path, sleeper: int, kind: str
) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    path = lock(toy, sleeper, gone.pid, kind=kind)
    os.utime(path, (1e9, 1e9))  # long before the sleeper was started
    [said] = mend(toy)
    assert "processes that have ended" in said
    assert Changes(toy).why("model") == "it has not run yet"
    _write(toy)


def test_locks_of_living_processes_stay(toy: Path, sleeper: int) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    path = lock(toy, gone.pid, sleeper, kind="read")
    assert len(list(mend(toy))) == 1
    [kept] = json.loads(path.read_text())["read"].values()
    assert [note["pid"] for note in kept] == [sleeper]
    assert list(mend(toy)) == []


def test_dvc_s_files_of_a_killed_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A dvc.lock cut anywhere, and a damaged memory: the outputs come back."""
    root = make_toy(tmp_path / "toy")
    monkeypatch.chdir(root)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    repro = [sys.executable, "-m", "dvc", "repro", "evaluate_dense"]
    subprocess.run(repro, check=True, capture_output=True)
    whole = (root / "dvc.lock").read_bytes()
    memory = sorted((tmp_path / "site").rglob("cache.db"))
    assert memory
    for cut in (0, 9, len(whole) // 2, len(whole) - 30):
        (root / "dvc.lock").write_bytes(whole[:cut])
        for path in memory:
            path.write_bytes(os.urandom(5000))
        with pytest.raises(UserError, match="flows.runner.dvc_files"):
            read_graph(root)
        assert main() == 0
        assert "damaged" in capfd.readouterr().err
        done = subprocess.run(repro, check=True, capture_output=True, text=True)
        if cut < 10:  # otherwise DVC can read it, and may run a stage of which half is there
            assert "Running stage" not in done.stdout, (cut, done.stdout)
        assert (root / "dvc.lock").read_bytes() == whole
        read_graph(root)
    assert main() == 0
    assert capfd.readouterr().err == ""


def test_a_run_that_dvc_was_remembering(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC makes a folder in its cache of runs, and then the file in it: a kill may come between."""
    monkeypatch.chdir(toy)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    repro = [sys.executable, "-m", "dvc", "repro", "evaluate_dense"]
    subprocess.run(repro, check=True, capture_output=True)
    kept = list((toy / ".dvc" / "cache" / "runs").glob("*/*"))
    for folder in kept:
        for file in folder.iterdir():
            file.unlink()
    (toy / "dvc.lock").unlink()
    assert len(list(mend(toy))) == len(kept) > 0
    subprocess.run(repro, check=True, capture_output=True)
    assert list(mend(toy)) == []


def test_a_merge_s_marks_in_dvc_lock_stay(toy: Path) -> None:
    (toy / "dvc.lock").write_text("<<<<<<< HEAD\nschema: '2.0'\n=======\n>>>>>>> other\n")
    assert list(mend(toy)) == []
    assert (toy / "dvc.lock").is_file()


def test_dvc_lock_is_whole_or_as_it_was(tmp_path: Path) -> None:
    from flows.runner.stage_host import _dump_whole

    path = tmp_path / "dvc.lock"
    path.write_text("before")

    def half(data: str, file: TextIO) -> None:
        file.write(data)
        assert path.read_text() == "before"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="space"):
        _dump_whole(str(path), "half", half)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["before"]
    _dump_whole(str(path), "after", lambda data, file: file.write(data) and None)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["after"]
