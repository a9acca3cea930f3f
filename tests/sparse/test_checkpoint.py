"""Packing and unpacking of checkpoints: bit by bit, every family; what is refused; atomic."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from efficientllava.cli import commands
from efficientllava.errors import UserError
from efficientllava.files import read_json
from efficientllava.models.checkpoint import save_checkpoint
from efficientllava.models.weight_files import weight_files
from efficientllava.sparse import pack_checkpoint, unpack_checkpoint
from efficientllava.sparse import tensor_file as tensor_file_module
from efficientllava.sparse.tensor_file import TensorFile, entry_of
from tests.models.families import TINY
from tests.sparse.packed import packable, tiny_pruned

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pruned("llama", tmp_path_factory.mktemp("dense") / "llama")


@pytest.mark.parametrize("name", TINY)
def test_every_family_comes_back_byte_by_byte(name: str, tmp_path: Path) -> None:
    number = list(TINY).index(name)
    shard = 20_000 if number % 2 else 10**9
    folder = tiny_pruned(name, tmp_path / "dense", DTYPES[number % 3], shard)
    (folder / "pruning.json").write_text("{}")
    settings = pack_checkpoint(folder, tmp_path / "packed")
    assert len(settings.modules) == packable(folder)
    assert settings.dtype in str(DTYPES[number % 3])
    unpack_checkpoint(tmp_path / "packed", tmp_path / "unpacked")
    assert contents(tmp_path / "unpacked") == contents(folder)
    shards = [len(weight_files(tmp_path / each)) for each in ("dense", "packed", "unpacked")]
    assert len(set(shards)) == 1 and (shards[0] > 1) == bool(number % 2)


def test_packed_matrices_take_the_place_of_weights(dense: Path, tmp_path: Path) -> None:
    pack_checkpoint(dense, tmp_path / "packed")
    before = load_file(dense / "model.safetensors")
    after = load_file(tmp_path / "packed" / "model.safetensors")
    section = read_json(tmp_path / "packed" / "config.json")["quantization_config"]
    assert section["quant_method"] == "efficientllava_sparse" and section["version"] == 1
    assert section["group"] == {"rows": 16, "columns": 2} and not section["lossy"]
    for name, weight in before.items():
        module = name.removesuffix(".weight")
        if module in section["modules"]:
            assert section["modules"][module] == list(weight.shape)
            kept = int((weight.view(torch.int16) != 0).sum())
            assert len(after[f"{module}.values"]) == kept + 32 and after[name].numel() == 0
        else:
            assert torch.equal(after[name], weight)
    assert "model.embed_tokens" not in section["modules"]


def test_int8_is_marked_and_close(dense: Path, tmp_path: Path) -> None:
    settings = pack_checkpoint(dense, tmp_path / "packed", dtype="int8")
    section = read_json(tmp_path / "packed" / "config.json")["quantization_config"]
    assert section["lossy"] and section["errors"] == settings.errors
    unpack_checkpoint(tmp_path / "packed", tmp_path / "unpacked")
    before = load_file(dense / "model.safetensors")
    after = load_file(tmp_path / "unpacked" / "model.safetensors")
    for module, error in settings.errors.items():
        weight, back = before[f"{module}.weight"], after[f"{module}.weight"]
        assert weight.dtype == back.dtype
        lost = float((weight.float() - back.float()).norm() / weight.float().norm())
        assert 0 < error < 0.01 and abs(lost - error) < 0.003  # bfloat16 rounds too


def changed(folder: Path, target: Path, change: Any) -> Path:
    """A copy of a checkpoint of one file with other tensors."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def put(name: str, index: Any, value: float) -> Any:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name][index] = value

    return change


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(
    name: str, value: float, dense: Path, tmp_path: Path
) -> None:
    folder = changed(dense, tmp_path / "bad", put(name, 3, value))
    with pytest.raises(UserError, match=f"weight {name} holds NaN or inf"):
        pack_checkpoint(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_negative_zeros_are_kept_and_told(
    dense: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = load_file(dense / "model.safetensors")
    negative = sum(
        int(((each == 0) & each.signbit()).sum())
        for name, each in tensors.items()
        if name.endswith("proj.weight")
    )
    pack_checkpoint(dense, tmp_path / "packed")
    assert negative and f"{negative} weights are -0.0" in caplog.text
    caplog.clear()

    def positive(tensors: dict[str, torch.Tensor]) -> None:
        for weight in tensors.values():
            weight[weight == 0] = 0.0

    pack_checkpoint(changed(dense, tmp_path / "positive", positive), tmp_path / "out")
    assert "-0.0" not in caplog.text


def test_the_command_packs_refuses_and_unpacks(tmp_path: Path) -> None:
    model, processor = TINY["llama"].build()
    save_checkpoint(model, processor, tmp_path / "dense")
    run = CliRunner().invoke

    def refused(*arguments: Any) -> str:
        result = run(commands, [str(argument) for argument in arguments])
        assert isinstance(result.exception, UserError), result.output
        return str(result.exception)

    assert "prune it first" in refused("pack", tmp_path / "dense", tmp_path / "out")
    pruned = tiny_pruned("llama", tmp_path / "pruned")
    done = run(commands, ["pack", str(pruned), str(tmp_path / "packed")])
    assert done.exit_code == 0
    assert re.search(r"14 matrices packed in bfloat16, to 0\.[1-9]\d\d of their", done.output)
    assert "is packed already" in refused("pack", tmp_path / "packed", tmp_path / "out")
    assert "exists already" in refused("pack", pruned, tmp_path / "packed")
    assert "it lies in" in refused("pack", pruned, pruned / "out")
    assert "no dtype to pack in" in refused("pack", pruned, tmp_path / "out", "--dtype", "int4")
    assert "no packed checkpoint" in refused("unpack", pruned, tmp_path / "out")
    assert "cannot be pruned" in refused("prune", tmp_path / "packed", "--work", tmp_path / "work")
    assert not (tmp_path / "out").exists() and not (pruned / "out").exists()
    done = run(commands, ["unpack", str(tmp_path / "packed"), str(tmp_path / "back")])
    assert done.exit_code == 0 and contents(tmp_path / "back") == contents(pruned)


def test_quantized_checkpoints_are_refused(dense: Path, tmp_path: Path) -> None:
    shutil.copytree(dense, tmp_path / "other")
    config = read_json(dense / "config.json") | {"quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="is quantized"):
        pack_checkpoint(tmp_path / "other", tmp_path / "out")


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), MemoryError(), KeyboardInterrupt()]
)
@pytest.mark.parametrize("work", [pack_checkpoint, unpack_checkpoint])
def test_nothing_half_written_is_left(
    work: Any, error: BaseException, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = dense
    if work is unpack_checkpoint:
        source = tmp_path / "packed"
        pack_checkpoint(dense, source)
    before, calls = contents(source), []

    def failing(*arguments: Any) -> int:
        calls.append(arguments)
        if len(calls) > 20:
            raise error
        return len(arguments[1])

    monkeypatch.setattr(tensor_file_module.os, "pwrite", failing)
    told = UserError if isinstance(error, OSError) else type(error)
    with pytest.raises(told):
        work(source, tmp_path / "out")
    assert len(calls) > 20 and contents(source) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"packed"}


def test_files_are_those_of_the_library(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {
        'b "ü" weight': torch.randn(3, 4).bfloat16(),
        "a": torch.randn(2).half(),
        "scalar": torch.tensor(True),
        "empty": torch.empty(0, 3),
        **{
            str(dtype): torch.ones(3).to(dtype)
            for dtype in tensor_file_module.ORDER.values()
        },
    }  # fmt: skip
    save_file(tensors, tmp_path / "library", metadata={"format": "pt"})
    file = TensorFile(tmp_path / "ours", [entry_of(name, each) for name, each in tensors.items()])
    file.begin({"format": "pt"})
    for name, tensor in tensors.items():
        file.write(name, tensor)
    file.finish({"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "library").read_bytes()


def test_a_file_without_one_of_its_tensors_is_not_finished(tmp_path: Path) -> None:
    entries = [entry_of(name, torch.ones(2)) for name in ("one", "two")]
    file = TensorFile(tmp_path / "file", entries)
    file.begin({})
    file.write("one", torch.ones(2))
    with pytest.raises(ValueError, match="two"):
        file.finish({})
    file.close()


def test_packed_tensors_are_aligned(dense: Path, tmp_path: Path) -> None:
    """Kernels read masks and offsets in place, where the file is mapped."""
    pack_checkpoint(dense, tmp_path / "packed")
    with safe_open(tmp_path / "packed" / "model.safetensors", framework="pt") as opened:
        for name in opened.keys():
            tensor = opened.get_tensor(name)
            assert tensor.numel() == 0 or tensor.data_ptr() % tensor.itemsize == 0, name
