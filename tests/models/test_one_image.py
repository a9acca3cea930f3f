"""One image goes through processor and model before any work, for every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from efficientllava import load, prune
from efficientllava.data.proxy import ProxyData
from efficientllava.errors import UserError
from efficientllava.models.checkpoint import load_model, load_processor, save_checkpoint
from efficientllava.models.processors.one_image import check_images
from tasks.model import take
from tests.models.families import PICTURED, TINY


def checkpoint(name: str, folder: Path, **changes: Any) -> Path:
    """A family's checkpoint whose config.json says something else than its processor."""
    save_checkpoint(*TINY[name].build(), folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))
    return folder


@pytest.mark.parametrize("name", PICTURED)
def test_what_belongs_together_passes(name: str) -> None:
    model, processor = PICTURED[name].build()
    ran = []
    model.get_output_embeddings().register_forward_hook(lambda *given: ran.append(given))
    check_images(processor, model, "here")
    assert not ran  # nor did the decoder


def test_a_text_only_model_has_no_image() -> None:
    model, processor = TINY["qwen2"].build()
    check_images(processor, model, "here")


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_grids_that_differ_are_named(name: str, tmp_path: Path) -> None:
    given = checkpoint(name, tmp_path / "given", image_grid_pinpoints=[[16, 32]])
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "finished").write_text("before")
    words = r"grids differ: the processor's .* \[16 x 32, 32 x 16, 32 x 32\], .* \[16 x 32\]"
    with pytest.raises(UserError, match=words):
        take(given, tmp_path / "taken")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["finished"]
    segments = torch.full((4, 12), 20)
    with pytest.raises(UserError, match=words):
        prune(
            load(given),
            ProxyData(segments, None, digest="0" * 64),
            method="magnitude",
            work=tmp_path / "work",
        )


def test_tokens_and_features_that_differ_are_told(tmp_path: Path) -> None:
    """Qwen2-VL's processor merges 2 x 2 patches; the model gives one feature for 4 x 4."""
    given = checkpoint("qwen2_vl", tmp_path / "given")
    file = given / "processor_config.json"
    if not file.is_file():
        file = given / "preprocessor_config.json"
    content = json.loads(file.read_text())
    content.get("image_processor", content)["merge_size"] = 4
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="an image of 64 x 32 pixels does not go through"):
        check_images(load_processor(given), load_model(given), "here")
    with pytest.raises(UserError, match="an image of 64 x 32 pixels does not go through"):
        take(given, tmp_path / "taken")


def test_chat_templates_and_settings_are_copied_whole(tmp_path: Path) -> None:
    given = checkpoint("llava", tmp_path / "given")
    before = load(given).digest
    (given / "additional_chat_templates").mkdir()
    added = {
        "chat_template.jinja": "<image> w1",
        "additional_chat_templates/brief.jinja": "w2",
        "generation_config.json": json.dumps({"do_sample": True, "temperature": 0.3, "own": 1}),
        "processor_notes.txt": "ours",
    }
    for name, text in added.items():
        (given / name).write_text(text)
    assert load(given).digest != before
    take(given, tmp_path / "taken")
    save_checkpoint(load_model(tmp_path / "taken"), tmp_path / "taken", tmp_path / "pruned")
    for folder in (tmp_path / "taken", tmp_path / "pruned"):
        for name, text in added.items():
            assert (folder / name).read_text() == text, (folder, name)
    digest = load(given).digest
    (given / "additional_chat_templates" / "brief.jinja").write_text("w3")
    assert load(given).digest != digest


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
def test_attention_is_ours(key: str, tmp_path: Path) -> None:
    given = checkpoint("llava", tmp_path / "given", **{key: "flash_attention_2"})
    take(given, tmp_path / "taken")
    loaded = load_model(tmp_path / "taken")
    parts = (loaded.config, loaded.config.text_config, loaded.config.vision_config)
    assert {part._attn_implementation for part in parts} == {"sdpa"}


def test_folders_of_other_kinds_are_told(tmp_path: Path) -> None:
    own = checkpoint("llava", tmp_path / "own", model_type="llava_llama")
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    quantised = {"quant_method": "gptq", "bits": 4}
    packed = checkpoint("llava", tmp_path / "gptq", quantization_config=quantised)
    gguf = tmp_path / "gguf"
    gguf.mkdir()
    (gguf / "model-q4.gguf").write_bytes(b"GGUF")
    for folder, words in (
        (own, "use the -hf layout"),
        (lora, "merge it first"),
        (packed, r"quantised \(gptq\)"),
        (gguf, "GGUF files"),
    ):
        with pytest.raises(UserError, match=words):
            take(folder, tmp_path / "taken")
