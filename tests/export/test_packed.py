"""The sparse runtime in the export: every family, its parity, and what cannot be packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from efficientllava.cli import commands
from efficientllava.errors import UserError
from efficientllava.export.decoding import Prompt
from efficientllava.export.model import export_model
from efficientllava.files import read_json
from efficientllava.models.checkpoint import save_checkpoint
from efficientllava.models.families import require_family
from efficientllava.parameters import ExportParameters
from tests.models.families import TINY
from tests.models.families.by_hand import ByHand
from tests.sparse.packed import tiny_pruned, zeros_in

QUICK = ExportParameters(
    runtimes=("sparse", "onnxruntime"), prompt_tokens=24, context=32, new_tokens=3, repetitions=3
)
FAST = ("qwen2_5_vl", "llama", "gemma4_text")


def prompt_of(name: str, folder: Path) -> Prompt:
    """A question with an image where the family reads one."""
    family = require_family("paligemma" if name == "paligemma2" else name)
    if not family.takes_images:
        return Prompt("w1 w2 w3", None)
    image = folder / "image.png"
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(image)
    return Prompt(f"{family.image_token} w1 w2 w3", image)


def dense_of(name: str, folder: Path) -> Path:
    """The folder of the family's model without zeros, in the pruned one's dtype."""
    model, processor = TINY[name].build()
    save_checkpoint(model.to(torch.bfloat16), processor, folder)
    return folder


def exported(name: str, folder: Path) -> dict[str, Any]:
    pruned, dense = tiny_pruned(name, folder / "pruned"), dense_of(name, folder / "dense")
    return export_model(pruned, dense, [prompt_of(name, folder)], folder / "export", QUICK)


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in TINY]
)
def test_every_family_is_packed_and_measured(name: str, tmp_path: Path) -> None:
    if isinstance(TINY[name].processor(), ByHand):
        pytest.skip("its own processor needs torchvision")
    record = exported(name, tmp_path)
    row = record["runtimes"]["sparse"]
    assert row["available"] and row["precision"] == "bfloat16" and row["tokens_match"]
    assert record["tolerance"]["sparse"] == 0.1
    assert set(record["parity"]["sparse"]) >= {"prefill_logits"}
    assert record["answers"][0]["sparse"] == record["answers"][0]["pytorch"]
    # these are so small that the names of the packed tensors weigh more than their weights
    packed = tmp_path / "export" / "packed" / "model.safetensors"
    assert record["bytes"]["packed_checkpoint"] == packed.stat().st_size
    assert record["bytes"]["pruned_checkpoint"] == record["bytes"]["dense_checkpoint"]
    for phase in ("prefill", "decode"):
        assert row["pruned"][f"{phase}_cpu_ms"] > 0 and row["dense_kernel"][f"{phase}_wall_ms"] > 0
        assert row[f"{phase}_speedup_over_best_dense"] > 0
        assert row[f"{phase}_best_dense"].startswith("sparse")
    other = record["runtimes"]["onnxruntime"]
    assert other["available"] == (name == "llava")
    if not other["available"]:
        assert "are not exported" in other["reason"]
        assert "take onnxruntime out of export.runtimes" in other["remedy"]
    assert read_json(tmp_path / "export" / "packed" / "config.json")["quantization_config"]


def test_ask_answers_from_an_exported_folder_without_graphs(tmp_path: Path) -> None:
    record = exported("llama", tmp_path)
    folder = tmp_path / "export"
    arguments = ["ask", str(folder), "-", "w1 w2 w3", "--raw", "--new-tokens", "3"]
    told = CliRunner().invoke(commands, arguments)
    assert told.exit_code == 0 and told.output.strip() == record["answers"][0]["text"]


def test_a_model_without_zeros_is_told_and_the_run_goes_on(tmp_path: Path) -> None:
    dense = dense_of("llama", tmp_path / "dense")
    record = export_model(dense, dense, [Prompt("w1", None)], tmp_path / "export", QUICK)
    row = record["runtimes"]["sparse"]
    assert row["available"] is False and "no matrix has enough zeros" in row["reason"]
    assert not (tmp_path / "export" / "packed").exists()


def test_other_weights_in_the_packed_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parity holds the packed model against the pruned one: packing another one must show."""
    from efficientllava.export import packed

    model, processor = TINY["llama"].build(seed=1)
    save_checkpoint(zeros_in(model.to(torch.bfloat16)), processor, tmp_path / "other")
    pack = packed.pack_checkpoint
    monkeypatch.setattr(packed, "pack_checkpoint", lambda _, out: pack(tmp_path / "other", out))
    with pytest.raises(UserError, match="export, sparse: the exported model differs from PyTorch"):
        exported("llama", tmp_path)
    assert not (tmp_path / "export").exists() and not list(tmp_path.glob(".*"))


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from efficientllava.export import packed

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packed, "pack_checkpoint", full)
    with pytest.raises(UserError, match="the disk is full"):
        exported("llama", tmp_path)
    assert not (tmp_path / "export").exists() and not list(tmp_path.glob(".*"))
