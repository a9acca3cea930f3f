"""Which files of a folder hold the weights: those that transformers reads, and no others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from efficientllava.errors import UserError
from efficientllava.files import folder_digest, read_json, write_json
from efficientllava.models.checkpoint import load_model, save_checkpoint
from efficientllava.models.families import adapter_for
from efficientllava.models.weight_files import INDEX, weight_files
from efficientllava.offload.blocks_on_disk import blocks_on_disk
from tasks.model import take
from tests.models.families import TINY

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A checkpoint in several files."""
    model, processor = TINY["llava"].build()
    save_checkpoint(model, processor, tmp_path / "given", shard=20_000)
    assert len(list((tmp_path / "given").glob("model-*.safetensors"))) > 2
    return tmp_path / "given"


def weights(folder: Path) -> Tensors:
    return {
        name: tensor
        for file in sorted(folder.glob("model-*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def write(tensors: Tensors, file: Path) -> None:
    save_file(tensors, file, metadata={"format": "pt"})


def halved(folder: Path) -> Tensors:
    return {name: 0.5 * tensor for name, tensor in weights(folder).items()}


def one_file_beside_shards(folder: Path) -> None:
    write(halved(folder), folder / "model.safetensors")


def index_left_without_shards(folder: Path) -> None:
    one_file_beside_shards(folder)
    for file in folder.glob("model-*.safetensors"):
        file.unlink()


def other_weights_beside_shards(folder: Path) -> None:
    for name in ("ema", "consolidated", "adapter_model", "model.fp16", "zz-model-00001-of-00001"):
        write(halved(folder), folder / f"{name}.safetensors")
    write_json(folder / "adapter_config.json", {"peft_type": "LORA"})
    write_json(folder / "model.fp16.safetensors.index.json", {"weight_map": {}})


def other_weights_beside_one_file(folder: Path) -> None:
    whole = weights(folder)
    other_weights_beside_shards(folder)
    for file in folder.glob("model-*.safetensors*"):
        file.unlink()
    (folder / INDEX).unlink()
    write(whole, folder / "model.safetensors")


def named_in_the_configuration(folder: Path) -> None:
    one_file_beside_shards(folder)
    write({name: 0.25 * each for name, each in weights(folder).items()}, folder / "q.safetensors")
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"transformers_weights": "q.safetensors"})


def weight_in_two_shards(folder: Path) -> None:
    """The index names one of them; transformers takes the last."""
    first, *_, last = sorted(folder.glob("model-*.safetensors"))
    repeated = {name: 3 * tensor for name, tensor in load_file(first).items()}
    write(load_file(last) | repeated, last.with_name("new"))
    last.with_name("new").replace(last)


@pytest.mark.parametrize(
    "change",
    [
        one_file_beside_shards,
        index_left_without_shards,
        other_weights_beside_shards,
        other_weights_beside_one_file,
        named_in_the_configuration,
        weight_in_two_shards,
    ],
)
def test_weights_are_those_that_transformers_reads(
    shards: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """Of the folder, of what stage `model` takes, of mapped blocks, and of what they save."""
    change(shards)
    expected = AutoModelForImageTextToText.from_pretrained(shards).state_dict()
    take(shards, tmp_path / "taken")
    model = load_model(tmp_path / "taken")
    adapter = adapter_for(model)
    with blocks_on_disk(adapter, tmp_path / "taken", tmp_path / "work") as kept:
        for matrix in adapter.matrices:
            assert torch.equal(kept.weight(matrix), expected[f"{matrix.name}.weight"])
        save_checkpoint(
            model, tmp_path / "taken", tmp_path / "saved", save_weights=kept.save_weights
        )
    for state in (model.state_dict(), load_model(tmp_path / "saved").state_dict()):
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in state)
    for folder in (tmp_path / "taken", tmp_path / "saved"):
        assert {*folder.glob("*.safetensors")} == {*weight_files(folder)}
        assert not (folder / "adapter_config.json").exists()


def elsewhere(folder: Path) -> Path:
    """The same weights in a folder beside the model's."""
    other = folder.parent / "elsewhere"
    shutil.copytree(folder, other)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    return other


def subfolder(folder: Path) -> object:
    elsewhere(folder).rename(folder / "sub")
    return {name: f"sub/{file}" for name, file in read_json(folder / INDEX)["weight_map"].items()}


def parent(folder: Path) -> object:
    elsewhere(folder)
    return {
        name: f"../elsewhere/{file}"
        for name, file in read_json(folder / INDEX)["weight_map"].items()
    }


def absolute(folder: Path) -> object:
    other = elsewhere(folder)
    return {
        name: f"{other / file}" for name, file in read_json(folder / INDEX)["weight_map"].items()
    }


@pytest.mark.parametrize(
    "weight_map",
    [
        subfolder,
        parent,
        absolute,
        *({"a": name} for name in ("..", ".", "", "pytorch_model-00001.bin", "config.json", 3)),
        {"a": None},
        {"a": ["model-00001-of-00005.safetensors"]},
        {},
        [],
        ["model-00001-of-00005.safetensors"],
        "model-00001-of-00005.safetensors",
        None,
    ],
    ids=lambda value: value.__name__ if callable(value) else json.dumps(value),
)
def test_index_that_transformers_cannot_read(
    shards: Path, tmp_path: Path, weight_map: object
) -> None:
    """Refused before anything that stands at the target is replaced."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "finished").write_text("before")
    index = read_json(shards / INDEX)
    index["weight_map"] = weight_map(shards) if callable(weight_map) else weight_map
    write_json(shards / INDEX, index)
    finished = folder_digest(tmp_path / "taken")
    with pytest.raises(UserError, match=r"index\.json: not an index that transformers can read"):
        take(shards, tmp_path / "taken")
    assert folder_digest(tmp_path / "taken") == finished


@pytest.mark.parametrize("content", ["[]", "3", "null", '"a"', "{}", '{"metadata": {}}'])
def test_index_of_another_shape(shards: Path, content: str) -> None:
    (shards / INDEX).write_text(content)
    with pytest.raises(UserError, match=r"it has no weight_map"):
        load_model(shards)


@pytest.mark.parametrize("metadata", [None, [], "x"])
def test_index_without_metadata(shards: Path, metadata: object) -> None:
    """transformers reads it and fails with a KeyError or TypeError."""
    write_json(shards / INDEX, read_json(shards / INDEX) | {"metadata": metadata})
    with pytest.raises(UserError, match=r"it has no metadata"):
        load_model(shards)


@pytest.mark.parametrize(
    "name", ["../given/q.safetensors", "/q.safetensors", "sub/q.safetensors", "q.bin", 3, ["q"]]
)
def test_configuration_that_names_a_file_elsewhere(shards: Path, name: object) -> None:
    config = read_json(shards / "config.json")
    write_json(shards / "config.json", config | {"transformers_weights": name})
    with pytest.raises(
        UserError, match="transformers_weights names .* no safetensors file of this"
    ):
        load_model(shards)


def test_configuration_that_is_no_object(shards: Path) -> None:
    (shards / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json: holds no JSON object"):
        load_model(shards)


def test_distributed_checkpoint_is_refused(shards: Path) -> None:
    """transformers reads such files before model.safetensors."""
    write(halved(shards), shards / "shard-00000-model-00001-of-00001.safetensors")
    with pytest.raises(UserError, match="distributed checkpoint"):
        load_model(shards)


def test_only_weights_that_transformers_does_not_read(shards: Path) -> None:
    other_weights_beside_shards(shards)
    for file in (*shards.glob("model-*.safetensors"), shards / INDEX):
        file.unlink()
    with pytest.raises(UserError, match=r"no safetensors that transformers loads .* only adapter"):
        load_model(shards)
