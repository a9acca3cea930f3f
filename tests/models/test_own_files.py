"""What stage `model` reads of a user's folder: its regular files, and the hub cache's blobs."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from efficientllava.errors import UserError
from efficientllava.files import folder_digest
from efficientllava.models.checkpoint import save_checkpoint
from tasks.model import take
from tests.models.families import TINY

SHARD = "model-00001-of-00005.safetensors"


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A checkpoint in shards; what stands where it is to go is finished."""
    model, processor = TINY["llava"].build()
    save_checkpoint(model, processor, tmp_path / "given", shard=20_000)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "finished").write_text("before")
    return tmp_path / "given"


def link_outside(file: Path) -> None:
    other = file.parent.parent / "elsewhere" / "file"
    other.parent.mkdir()
    file.rename(other)
    file.symlink_to(other)


def link_to_nothing(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def link_to_itself(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def endless_device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def link_to_a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file.with_name("pipe"))
    file.symlink_to("pipe")


def endpoint(file: Path) -> None:
    file.unlink()
    here = os.getcwd()
    os.chdir(file.parent)  # the path of a socket may have 107 characters
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(file.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors.index.json", SHARD]
)
@pytest.mark.parametrize(
    "change",
    [
        link_outside,
        link_to_nothing,
        link_to_itself,
        endless_device,
        pipe,
        link_to_a_pipe,
        endpoint,
    ],
)
def test_files_that_are_not_the_folders_own(
    given: Path, tmp_path: Path, change: Callable[[Path], None], name: str
) -> None:
    change(given / name)
    with pytest.raises(UserError, match=rf"{name}: (no regular file|the link leads out of)"):
        take(given, tmp_path / "taken")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["finished"]


@pytest.mark.parametrize("change", [link_outside, link_to_nothing, endless_device, pipe])
def test_one_file_of_weights(given: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    """It is not passed over for the index either."""
    shutil.copyfile(given / SHARD, given / "model.safetensors")
    change(given / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: (no regular|the link leads)"):
        take(given, tmp_path / "taken")


def test_templates_that_a_processor_reads(given: Path, tmp_path: Path) -> None:
    (given / "additional_chat_templates").mkdir()
    (given / "additional_chat_templates" / "one.jinja").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"one\.jinja: no regular file"):
        take(given, tmp_path / "taken")


def test_other_files_are_not_looked_at(given: Path, tmp_path: Path) -> None:
    (given / "README.md").symlink_to("/dev/zero")
    (given / "ema.safetensors").symlink_to("/dev/zero")
    os.mkfifo(given / "pipe")
    (given / "runs.txt").mkdir()
    take(given, tmp_path / "taken")
    taken = {path.name for path in (tmp_path / "taken").iterdir()}
    assert {SHARD, "config.json", "tokenizer.json", "model.safetensors.index.json"} <= taken
    assert not taken & {"README.md", "ema.safetensors", "pipe", "runs.txt"}


@pytest.mark.parametrize("store", ["models--o--n/blobs", "blobs/ab"])
def test_snapshot_of_the_hubs_cache(given: Path, tmp_path: Path, store: str) -> None:
    """Its files are links to blobs of the repository, or of the cache as a whole."""
    snapshot, blobs = (
        tmp_path / "hub" / "models--o--n" / "snapshots" / "c0",
        tmp_path / "hub" / store,
    )
    shutil.copytree(given, snapshot)
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(os.path.relpath(blobs / str(number), snapshot))
    (tmp_path / "link").symlink_to(snapshot)
    digests = []
    for source in (given, snapshot, tmp_path / "link"):
        take(source, tmp_path / "taken")
        assert not any(path.is_symlink() for path in (tmp_path / "taken").iterdir())
        digests.append(folder_digest(tmp_path / "taken"))
    assert len(set(digests)) == 1
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(given / "config.json")
    with pytest.raises(UserError, match="the link leads out of the model folder"):
        take(snapshot, tmp_path / "taken")


def test_links_inside_the_folder(given: Path, tmp_path: Path) -> None:
    (given / SHARD).rename(given / "first")
    (given / SHARD).symlink_to("first")
    take(given, tmp_path / "taken")
    assert not (tmp_path / "taken" / SHARD).is_symlink()


def test_no_room_for_a_copy(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stated before anything is copied."""
    total = sum(path.stat().st_size for path in given.iterdir())
    free = [total - 1]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free[0]))
    monkeypatch.setattr(shutil, "copyfile", lambda *args: pytest.fail("copied"))
    with pytest.raises(UserError, match=r"the checkpoint takes .* GB, .* GB are free on the disk"):
        take(given, tmp_path / "taken")
    assert (tmp_path / "taken" / "finished").exists()
    monkeypatch.undo()
    free[0] = total
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free[0]))
    take(given, tmp_path / "new" / "taken")
    assert (tmp_path / "new" / "taken" / "config.json").is_file()
