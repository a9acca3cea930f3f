"""The model that is pruned: from a folder, the hub and memory; what cannot be one is refused."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path

import pytest
import torch

from efficientllava.errors import UserError
from efficientllava.models.checkpoint import load_model, save_checkpoint
from efficientllava.models.loading import load
from efficientllava.models.processors.text_processor import TextProcessor
from tests.models.families import TINY


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("loading") / "model"
    save_checkpoint(*TINY["llava"].build(), made)
    return made


def test_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = load(folder)
    assert vlm.folder == folder and vlm.description == str(folder)
    assert vlm.family.takes_images and vlm.processor.image_token == "<image>"
    assert repr(vlm) == f"<vision-language model: {folder}>"
    monkeypatch.chdir(folder.parent)
    assert load("./model").folder == folder == load("model").folder


def test_digest_is_that_of_what_is_read(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text("nothing that transformers reads")
    assert load(copy).digest == load(folder).digest
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"image_seq_length": 7}))
    assert load(copy).digest != load(folder).digest


@pytest.mark.parametrize("name", ["llava", "llama"])
def test_memory_is_saved_when_it_is_needed(name: str) -> None:
    model, processor = TINY[name].build()
    given = processor.tokenizer if isinstance(processor, TextProcessor) else processor
    vlm = load((model, given))
    assert "folder" not in vars(vlm), "nothing is written before it is needed"
    place = vlm.folder
    assert vlm.processor.tokenizer("w1")["input_ids"] == processor.tokenizer("w1")["input_ids"]
    again, state = load_model(place).state_dict(), model.state_dict()
    assert all(torch.equal(again[key], state[key]) for key in state)
    assert load((model, given)).digest == vlm.digest
    del vlm
    gc.collect()
    assert not place.exists(), "the temporary folder goes with the object"


def test_hub_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def snapshot_download(name: str, **settings: object) -> str:
        asked.update(settings, name=name)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    vlm = load("owner/name", revision="0123abc")
    assert vlm.folder == folder and vlm.description == "owner/name at 0123abc"
    assert asked["revision"] == "0123abc" and asked["cache_dir"] is None
    assert "*.bin" not in asked["allow_patterns"], "no pickles"


def test_hub_id_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="owner/name at 0123abc: the hub does not give it"):
        load("owner/name", revision="0123abc")


def test_what_is_no_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hub id needs its commit in `revision`"):
        load("owner/name")
    with pytest.raises(UserError, match="no such model folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"the model folder has no config\.json"):
        load(tmp_path)
    with pytest.raises(UserError, match="int is no model that can be pruned"):
        load(7)  # type: ignore[arg-type]
    model, processor = TINY["llava"].build()
    with pytest.raises(UserError, match=r"LlavaForConditionalGeneration is no model that"):
        load(model)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"\(LlavaProcessor, .*\) is no model with its processor"):
        load((processor, model))
    model.config.model_type = "bert"
    with pytest.raises(UserError, match="'bert'"):
        load((model, processor))
