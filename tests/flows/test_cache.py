"""DVC keeps every output once, and stages can still write new versions of them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from efficientllava.files import replacing, write_json
from flows.runner.graph import open_repo, restore_outputs
from tests.flows.conftest import ROOT, change


@pytest.fixture
def ours(toy: Path) -> Path:
    """A workspace with the repository's own settings of DVC."""
    text = (ROOT / ".dvc" / "config").read_text()
    (toy / ".dvc" / "config").write_text(text.replace("[core]\n", "[core]\n    no_scm = true\n"))
    return toy


def repro(stage: str) -> None:
    command = [sys.executable, "-m", "dvc", "repro", "--quiet", "--single-item", stage]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def outputs(root: Path) -> list[Path]:
    return sorted(path for path in (root / "artifacts").rglob("*") if path.is_file())


def cached(root: Path) -> list[Path]:
    return [path for path in (root / ".dvc" / "cache" / "files").rglob("*") if path.is_file()]


def stored_twice(root: Path) -> list[Path]:
    """Outputs that are neither the cache's file nor a link to it."""
    known = {(path.stat().st_dev, path.stat().st_ino) for path in cached(root)}
    status = [(path, path.stat()) for path in outputs(root)]
    return [path for path, found in status if (found.st_dev, found.st_ino) not in known]


def spoilt(root: Path) -> list[Path]:
    """Files of the cache that are not what their name says."""
    return [
        path
        for path in cached(root)
        if hashlib.md5(path.read_bytes()).hexdigest() != path.parent.name + path.stem
    ]


def reflinks(folder: Path) -> bool:
    """Whether the file system shares blocks between files: then no link is needed."""
    from dvc_objects.fs.system import reflink

    (folder / "probe").touch()
    try:
        reflink(str(folder / "probe"), str(folder / "reflink"))
    except OSError:
        return False
    return True


def test_outputs_are_stored_once_and_can_be_replaced(ours: Path, tmp_path: Path) -> None:
    if reflinks(tmp_path):
        pytest.skip("a file system with reflinks")
    for stage in ("model", "evaluate_dense"):
        repro(stage)
    assert len(outputs(ours)) == 3 and not stored_twice(ours)
    # a stage's new version, and the old one again from the cache
    before = (ours / "artifacts/model/model.safetensors").read_text()
    text = (ours / "stage.py").read_text()
    (ours / "stage.py").write_text(text.replace('weights("dense")', 'weights("other")'))
    repro("model")
    assert (ours / "artifacts/model/model.safetensors").read_text() != before
    # what came out as before is linked, too
    assert not stored_twice(ours) and not spoilt(ours)
    (ours / "stage.py").write_text(text)
    repro("model")
    assert (ours / "artifacts/model/model.safetensors").read_text() == before
    assert not stored_twice(ours)
    # what the library writes over a link is a file of its own, and the cache stays as it was
    write_json(ours / "artifacts/model/config.json", {"changed": True})
    with replacing(ours / "artifacts/model") as temporary:
        shutil.copytree(ours / "artifacts/model", temporary)
        write_json(temporary / "config.json", {"changed": "again"})
    assert not spoilt(ours)
    shutil.rmtree(ours / "artifacts/model")
    assert restore_outputs(ours, "model") and not stored_twice(ours)


def test_an_output_on_another_file_system_is_copied(ours: Path, tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system")
    if not os.access(other, os.W_OK):
        pytest.skip("no second file system that can be written")
    folder = other / f"cache-{os.getpid()}"
    try:
        change_cache(ours, folder)
        repro("model")
        change(ours, "{seed: 0}}", "{seed: 1}}")
        repro("model")
        assert b'"of": "dense"' in (ours / "artifacts/model/model.safetensors").read_bytes()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def change_cache(root: Path, folder: Path) -> None:
    config = root / ".dvc" / "config"
    config.write_text(config.read_text().replace("[cache]\n", f"[cache]\n    dir = {folder}\n"))
    with open_repo(root) as repo:
        assert Path(repo.cache.local_cache_dir) == folder
