"""`efficientllava verify`, and every file that is opened: one flipped bit does not go unnoticed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from efficientllava.allocation.search.evolution import Candidate
from efficientllava.allocation.search.state import SearchState
from efficientllava.commands.pack import unpack
from efficientllava.commands.verify import verify
from efficientllava.data.proxy import load_proxy, save_proxy
from efficientllava.database.build import build_database
from efficientllava.database.solutions import open_database
from efficientllava.errors import UserError
from efficientllava.export.assistant import read_image
from efficientllava.files import DIGESTS, require_sealed, seal, write_json, write_sealed
from efficientllava.models.checkpoint import load_model, save_checkpoint
from efficientllava.models.families import adapter_for
from efficientllava.parameters import ObsParameters
from tests.conftest import random_llava, random_proxy
from tests.export.conftest import tiny_processor

LEVELS = [0.4, 0.6]


def make_database(folder: Path) -> None:
    parameters = ObsParameters(block_size=16)
    work = folder.with_name("work")
    build_database(
        adapter_for(random_llava()), random_proxy(), LEVELS, parameters, folder, work, {}
    )


def use_database(folder: Path) -> None:
    opened = open_database(folder, LEVELS)
    for matrix in adapter_for(random_llava()).matrices:
        for level in LEVELS:
            opened.put(matrix.name, level, matrix.weight)


def make_proxy(folder: Path) -> None:
    save_proxy(folder, random_proxy(), {"seed": 0})


def make_model(folder: Path) -> None:
    save_checkpoint(random_llava(), tiny_processor(), folder, {"note.json": {"a": 1}}, sealed=True)


def use_model(folder: Path) -> None:
    load_model(folder)
    require_sealed(folder, ("*.json", "*.txt"))  # as stages do


def make_round(folder: Path) -> None:
    candidate = Candidate(1, 0, (0, 1), "first", 0.5, 0.25, 0.125, 0.5, 1)
    state = SearchState([candidate], [{"round": 1, "best_risk": 0.5}], {candidate.genes: candidate})
    state.population, state.projector = [candidate], 1
    state.keep(folder, 1, {"weight": torch.randn(4, 4)})


def use_round(folder: Path) -> None:
    SearchState().resume(folder, 1)


KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], object]]] = {
    "database": (make_database, use_database),
    "proxy": (make_proxy, load_proxy),
    "model": (make_model, use_model),
    "search round": (make_round, use_round),
}


def flip(path: Path, draw: random.Random) -> bytes:
    """Flip one bit of a file; its content before that."""
    before = path.read_bytes()
    content = bytearray(before)
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return before


@pytest.mark.parametrize("kind", KINDS)
def test_one_flipped_bit_is_told_when_the_file_is_opened(kind: str, tmp_path: Path) -> None:
    make, use = KINDS[kind]
    folder, draw = tmp_path / "folder", random.Random(kind)
    make(folder)
    use(folder)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    assert files
    for path in files:
        for _ in range(4):
            before = flip(path, draw)
            with pytest.raises(UserError):
                use(folder)
            path.write_bytes(before)
    use(folder)


@pytest.mark.parametrize("kind", ["database", "proxy", "model"])
def test_verify_names_the_damaged_file(kind: str, tmp_path: Path) -> None:
    folder, draw = tmp_path / "folder", random.Random(kind)
    KINDS[kind][0](folder)
    assert "as they were written" in verify(folder)
    for path in sorted(folder.iterdir()):
        before = flip(path, draw)
        with pytest.raises(UserError) as told:
            verify(folder)
        assert str(folder) in str(told.value)
        if path.suffix == ".safetensors":
            assert path.name in str(told.value)
        path.write_bytes(before)


def test_a_folder_without_records(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no record"):
        verify(tmp_path)
    save_checkpoint(random_llava(), tiny_processor(), tmp_path / "own")
    with pytest.raises(UserError, match="holds no record"):
        verify(tmp_path / "own")


def test_an_export_is_its_packed_checkpoint_and_a_missing_shard_is_named(tmp_path: Path) -> None:
    KINDS["model"][0](tmp_path / "export" / "packed")
    assert "packed: " in verify(tmp_path / "export")
    save_checkpoint(random_llava(), tiny_processor(), tmp_path / "own", shard=10_000)
    shard = sorted((tmp_path / "own").glob("*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(UserError, match=shard.name):
        verify(tmp_path / "own")


def test_messages_name_a_remedy_and_no_object(tmp_path: Path) -> None:
    """A text file in the place of a picture, of a checkpoint, of a folder."""
    text = tmp_path / "text.txt"
    text.write_text("no picture")
    for path, said in ((text, "not a readable image"), (tmp_path / "none.png", "no such image")):
        with pytest.raises(UserError, match=f"{said}.*\n  -> ") as told:
            read_image(path)
        assert " at 0x" not in str(told.value)
    with pytest.raises(UserError, match=r"text.txt: is a file, no model folder\n  -> "):
        unpack(text, tmp_path / "out")
    with pytest.raises(UserError, match=r"there is no such folder\n  -> "):
        verify(text)


def test_a_recorded_file_is_gone_and_others_may_come(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    seal(tmp_path)
    write_json(tmp_path / "b.json", 2)
    assert require_sealed(tmp_path) == 1
    (tmp_path / "a.json").unlink()
    with pytest.raises(UserError, match="a.json: no such file"):
        require_sealed(tmp_path)
    (tmp_path / DIGESTS).unlink()
    assert require_sealed(tmp_path) == 0


@pytest.mark.parametrize("files", [None, [], {"a": 1}, {"../a": "0"}, {"/etc/passwd": "0"}])
def test_records_of_another_shape(files: object, tmp_path: Path) -> None:
    write_sealed(tmp_path / DIGESTS, {"files": files})
    with pytest.raises(UserError, match="digests of files beside it"):
        verify(tmp_path)
