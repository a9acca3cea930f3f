"""Checkpoints: round trip, and every way in which a folder can be unusable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, LlavaConfig, LlavaForConditionalGeneration

from efficientllava.errors import UserError
from efficientllava.files import read_json, write_json
from efficientllava.models.checkpoint import (
    check_tokenizer,
    load_model,
    load_processor,
    save_checkpoint,
)
from efficientllava.models.families import adapter_for
from tests.conftest import random_llava
from tests.export.conftest import tiny_model, tiny_processor


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(random_llava(), tiny_processor(), tmp_path / "model", {"note.json": {"a": 1}})
    return tmp_path / "model"


def test_round_trip(folder: Path) -> None:
    original, loaded = random_llava().state_dict(), load_model(folder).state_dict()
    assert original.keys() == loaded.keys()
    assert all(torch.equal(original[name], loaded[name]) for name in original)
    assert json.loads((folder / "note.json").read_text()) == {"a": 1}
    assert load_processor(folder).image_token == "<image>"


def test_saving_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    save_checkpoint(random_llava(), tiny_processor(), tmp_path / "again", {"note.json": {"a": 1}})
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such model folder"):
        load_model(tmp_path / "nowhere")


def test_no_weights_and_pickles_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no safetensors"):
        load_model(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match=r"only pickled weights \(pytorch_model.bin\)"):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5])
def test_truncated_weights(folder: Path, keep: float) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
    with pytest.raises(UserError, match=r"model\.safetensors: not a complete safetensors file"):
        load_model(folder)


def test_missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"shard model-00001-of-00002\.safetensors is missing"):
        load_model(folder)


def test_missing_weight_is_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if "layers.1.mlp.up_proj" in name)
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"missing keys: .*layers\.1\.mlp\.up_proj"):
        load_model(folder)


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers load nothing: it allocates what files lack."""

    def load(*args: object, **kwargs: object) -> None:
        pytest.fail("weights were allocated")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", load)


@pytest.mark.parametrize("text", [..., None, [], "llama", 3])
@pytest.mark.usefixtures("no_memory")
def test_configuration_without_a_language_model(folder: Path, text: object) -> None:
    """transformers would build its default, a model of 7 billion weights."""
    config = read_json(folder / "config.json") | {"text_config": text}
    write_json(folder / "config.json", {k: v for k, v in config.items() if v is not ...})
    with pytest.raises(UserError, match=r"config\.json: text_config, .* is missing or no JSON"):
        load_model(folder)


@pytest.mark.parametrize(
    "part, changes, told",
    [
        ("text_config", {}, "describes"),
        ("text_config", {"hidden_size": 4096}, "describes"),
        ("text_config", {"vocab_size": 10**9}, "describes"),
        ("text_config", {"hidden_size": 10**15}, "."),
        ("text_config", {"num_hidden_layers": 10**12}, "num_hidden_layers is"),
        ("vision_config", {"num_hidden_layers": 10**12}, "num_hidden_layers is"),
        ("vision_config", {}, "describes"),
        ("vision_config", {"intermediate_size": 10**8}, "describes"),
        ("vision_config", {"image_size": 10**7}, "describes"),
    ],
)
@pytest.mark.usefixtures("no_memory")
def test_configuration_of_a_larger_model(
    folder: Path, part: str, changes: dict[str, int], told: str
) -> None:
    config = read_json(folder / "config.json")
    config[part] = config[part] | changes if changes else {"model_type": config[part]["model_type"]}
    write_json(folder / "config.json", config)
    with pytest.raises(UserError, match=told) as raised:
        load_model(folder)
    assert str(folder) in raised.value.where


@pytest.mark.usefixtures("no_memory")
def test_configuration_without_a_vision_tower(folder: Path) -> None:
    config = read_json(folder / "config.json")
    del config["vision_config"]
    write_json(folder / "config.json", config)
    with pytest.raises(UserError, match="describes .* weights, but the files hold"):
        load_model(folder)


@pytest.mark.usefixtures("no_memory")
def test_most_weights_missing(tmp_path: Path) -> None:
    """A shard with most of them is not listed in the index."""
    model = LlavaForConditionalGeneration(wide_config())
    save_checkpoint(model, tiny_processor(), tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    few = {name: each for name, each in tensors.items() if "layers.0" in name}
    save_file(few, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="describes .* weights, but the files hold"):
        load_model(tmp_path / "model")


def wide_config() -> LlavaConfig:
    config: LlavaConfig = random_llava().config
    config.text_config.intermediate_size = 20_000
    return config


def test_nan_weight_is_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if "layers.2.self_attn.o_proj" in name)
    tensors[name][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"layers\.2\.self_attn\.o_proj.* NaN or inf"):
        load_model(folder)


def test_unknown_family(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "blip-2"}))
    with pytest.raises(UserError, match="no decoder blocks known to us .*'blip-2'"):
        load_model(folder)
    with pytest.raises(UserError, match="Linear"):
        adapter_for(torch.nn.Linear(2, 2))


def test_folder_without_processor(folder: Path) -> None:
    for path in folder.glob("*"):
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    with pytest.raises(UserError, match="no usable processor"):
        load_processor(folder)


def test_tokenizer_that_does_not_fit() -> None:
    check_tokenizer(tiny_processor(), tiny_model(), "here")
    larger = tiny_processor()
    larger.tokenizer.add_tokens(["another"])
    with pytest.raises(UserError, match="largest token id is 64, the model has 64 embeddings"):
        check_tokenizer(larger, tiny_model(), "here")


def test_failed_save_leaves_the_finished_checkpoint(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    with pytest.raises(ValueError, match="Out of range float"):
        save_checkpoint(random_llava(1), tiny_processor(), folder, {"bad.json": float("nan")})
    for path in copy.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()
    assert not list(folder.parent.glob(".*"))
