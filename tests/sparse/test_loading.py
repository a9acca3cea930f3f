"""Packed checkpoints through transformers: the same answers, and nothing damaged gets in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from efficientllava.cli import commands
from efficientllava.errors import UserError
from efficientllava.files import read_json
from efficientllava.models.checkpoint import load_model
from efficientllava.models.families import adapter_for
from efficientllava.models.loading import load
from efficientllava.models.packed import record_of
from efficientllava.pruning.sequential import matrix_row
from efficientllava.sparse import SparseLinear, pack_checkpoint, unpack_checkpoint
from tests.models.families import TINY
from tests.sparse.packed import from_pretrained, logits, packable, tiny_pruned

CLOSE = {torch.bfloat16: 0.05, torch.float16: 0.01, torch.float32: 1e-4}
"""Largest difference of logits: sums are added in another order."""


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pruned("llama", tmp_path_factory.mktemp("dense") / "llama", torch.float32)


@pytest.fixture(scope="module")
def packed(dense: Path) -> Path:
    pack_checkpoint(dense, dense.parent / "packed")
    return dense.parent / "packed"


def layers_of(model: nn.Module) -> list[SparseLinear]:
    return [module for module in model.modules() if isinstance(module, SparseLinear)]


def close(model: nn.Module, other: nn.Module, dtype: torch.dtype = torch.float32) -> bool:
    return bool((logits(model) - logits(other)).abs().max() <= CLOSE[dtype])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TINY)
def test_every_family_answers_as_before(name: str, tmp_path: Path) -> None:
    dtype = (torch.bfloat16, torch.float32)[list(TINY).index(name) % 2]
    folder = tiny_pruned(name, tmp_path / "dense", dtype)
    pack_checkpoint(folder, tmp_path / "packed")
    before, after = from_pretrained(folder), from_pretrained(tmp_path / "packed")
    assert len(layers_of(after)) == packable(folder) and close(before, after, dtype)
    for matrix, other in zip(
        adapter_for(before).matrices, adapter_for(after).matrices, strict=True
    ):
        assert torch.equal(matrix.weight, other.weight) and matrix.size == other.size
        assert other.packed and not matrix.packed and matrix.name == other.name
    prompt = {"input_ids": torch.tensor([[5, 9, 7]]), "max_new_tokens": 4, "do_sample": False}
    assert after.generate(**prompt).shape == before.generate(**prompt).shape


@pytest.mark.parametrize("name", ["llama", "llava", "qwen2_5_vl", "qwen3_vl_moe", "mixtral"])
def test_a_loaded_model_is_saved_again(name: str, tmp_path: Path) -> None:
    folder = tiny_pruned(name, tmp_path / "dense", torch.float32)
    pack_checkpoint(folder, tmp_path / "packed")
    model = from_pretrained(tmp_path / "packed")
    model.save_pretrained(tmp_path / "again", max_shard_size="30KB")
    assert torch.equal(logits(from_pretrained(tmp_path / "again")), logits(model))
    unpack_checkpoint(tmp_path / "again", tmp_path / "unpacked")
    before, after = from_pretrained(folder), from_pretrained(tmp_path / "unpacked")
    state = before.state_dict()
    assert all(torch.equal(state[name], each) for name, each in after.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_loading_in_another_dtype_is_casting(dtype: torch.dtype, dense: Path, packed: Path) -> None:
    before, after = from_pretrained(dense, dtype=dtype), from_pretrained(packed, dtype=dtype)
    assert {layer.values.dtype for layer in layers_of(after)} == {dtype}
    assert close(before, after, dtype)
    cast = from_pretrained(packed).to(dtype)
    assert torch.equal(logits(cast), logits(after))
    for matrix, other in zip(adapter_for(before).matrices, adapter_for(cast).matrices, strict=True):
        assert torch.equal(matrix.weight, other.weight)


def test_what_transformers_cannot_do_it_says(packed: Path) -> None:
    model = from_pretrained(packed)
    with pytest.raises(ValueError, match="not supported for quantized model"):
        model.half()
    with pytest.raises(UserError, match="weights of float64 cannot be packed"):
        model.to(torch.float64)


def test_torch_compile_sees_through_the_operator(packed: Path) -> None:
    model = from_pretrained(packed)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    # outside of no_grad: weights that need a gradient would ask for a backward pass
    out = compiled(input_ids=torch.tensor([[5, 9, 7, 6, 8]]), use_cache=False).logits
    assert torch.equal(out, logits(model))


def test_dequantize_gives_plain_layers(dense: Path, packed: Path) -> None:
    model = from_pretrained(packed).dequantize()
    assert not layers_of(model) and torch.equal(logits(model), logits(from_pretrained(dense)))


def test_int8_keeps_its_dtype_in_casts(dense: Path, tmp_path: Path) -> None:
    pack_checkpoint(dense, tmp_path / "packed", dtype="int8")
    model = from_pretrained(tmp_path / "packed")
    assert (logits(model) - logits(from_pretrained(dense))).abs().max() < 0.5
    model.to(torch.bfloat16)
    layer = layers_of(model)[0]
    assert (layer.values.dtype, layer.scales.dtype) == (torch.int8, torch.float32)
    assert logits(model).dtype == torch.bfloat16


def test_a_layer_has_no_backward_pass() -> None:
    torch.manual_seed(0)
    layer = SparseLinear.from_dense(nn.Linear(20, 30))
    with pytest.raises(UserError, match="no backward pass"):
        layer(torch.ones(2, 20, requires_grad=True)).sum().backward()


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_is_enough(packed: Path) -> None:
    code = """
import sys
{first}
{second}
assert "numba" not in sys.modules
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(type(model.model.layers[0].mlp.up_proj).__name__, transformers.modeling_utils.__loader__)
"""
    ours, theirs = "import efficientllava", "import transformers"
    used = f"{theirs}; transformers.PreTrainedModel"
    for first, second in ((ours, theirs), (theirs, ours), (used, ours)):
        told = run(code.format(first=first, second=second), str(packed))
        assert told.startswith("SparseLinear") and "Registering" not in told


def test_without_the_package_nothing_wrong_is_loaded(packed: Path, tmp_path: Path) -> None:
    pack_checkpoint(tiny_pruned("qwen3_moe", tmp_path / "dense"), tmp_path / "apart")
    pack_checkpoint(tiny_pruned("qwen3_vl_moe", tmp_path / "more"), tmp_path / "stacked")
    code = """
import sys, transformers
for folder in sys.argv[1:]:
    auto = "ImageTextToText" if folder.endswith("stacked") else "CausalLM"
    try:
        getattr(transformers, f"AutoModelFor{auto}").from_pretrained(folder)
    except RuntimeError as error:
        print("refused")
"""
    folders = (packed, tmp_path / "apart", tmp_path / "stacked")
    assert run(code, *map(str, folders)).split() == ["refused"] * 3


def test_ask_and_verify_run_packed_checkpoints(dense: Path, tmp_path: Path) -> None:
    rows, policy = [], {}
    for matrix in adapter_for(load_model(dense)).matrices:
        zeros = int((matrix.weight == 0).sum())
        policy[matrix.name] = zeros / matrix.size
        rows.append(
            matrix_row(matrix.name, 0, policy[matrix.name], matrix.weight, matrix.weight, None, 0)
        )
    record = {"matrices": rows, "policy": policy, "method": "magnitude", "ratio": 0.5}
    shutil.copytree(dense, tmp_path / "dense")
    (tmp_path / "dense" / "pruning.json").write_text(json.dumps(record))
    for dtype in (None, "int8"):
        folder = tmp_path / str(dtype)
        pack_checkpoint(tmp_path / "dense", folder, dtype)
        verified = CliRunner().invoke(commands, ["verify", str(folder)])
        assert "14 matrices with the zeros of their policy" in verified.output, verified.exception
        asked = CliRunner().invoke(commands, ["ask", str(folder), "-", "w1 w2"])
        assert asked.exit_code == 0 and asked.output.strip()


def test_models_in_memory_are_not_pruned_packed(packed: Path) -> None:
    with pytest.raises(UserError, match="packed or quantized"):
        load((from_pretrained(packed), TINY["llama"].processor().tokenizer))
    with pytest.raises(UserError, match="cannot be pruned"):
        load(packed)


# --- damage ---


def other_config(folder: Path, change: Any) -> None:
    config = read_json(folder / "config.json")
    change(config["quantization_config"], config)
    (folder / "config.json").write_text(json.dumps(config))


def other_tensors(folder: Path, change: Any, checksums: bool = True) -> None:
    """Change tensors; with `checksums`, whoever did it has recorded them as they now are."""
    from efficientllava.sparse.record import metadata
    from efficientllava.sparse.tensor_file import checksum

    file = folder / "model.safetensors"
    record, tensors = record_of(file), load_file(file)
    change(tensors)
    sums = (
        {name: checksum(each) for name, each in tensors.items()} if checksums else record["tensors"]
    )
    config = read_json(folder / "config.json")
    save_file(tensors, file, metadata(sums, config, record["source"], len(sums)))


UP = "model.layers.1.mlp.up_proj"


def add(name: str, index: Any, amount: int) -> Any:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{UP}.{name}"].view(-1)[index] += amount

    return change


def flip(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{UP}.masks"][0, 3] ^= 1


def cut(name: str) -> Any:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{UP}.{name}"] = tensors[f"{UP}.{name}"][:-1].clone()

    return change


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: other_config(f, lambda s, c: c.update(quantization_config=[])), "not the file"),
        (lambda f: other_config(f, lambda s, c: s.update(version=2)), "newer than 1"),
        (lambda f: other_config(f, lambda s, c: s.update(version="x")), "is unknown"),
        (lambda f: other_config(f, lambda s, c: s.pop("modules")), "not the file that"),
        (lambda f: other_config(f, lambda s, c: s["modules"].popitem()), "not the file that"),
        (lambda f: other_config(f, lambda s, c: c.update(rms_norm_eps=0.1)), "not the file that"),
        (lambda f: other_config(f, lambda s, c: c.pop("quantization_config")), "not the file"),
        (lambda f: other_tensors(f, flip), f"{UP}: the masks"),
        (lambda f: other_tensors(f, add("offsets", 1, 2**40)), f"{UP}: its offsets"),
        (lambda f: other_tensors(f, add("offsets", 1, 1)), f"{UP}: the masks of group 0"),
        (lambda f: other_tensors(f, add("values", -1, 1)), f"{UP}: the zeros at the end"),
        (lambda f: other_tensors(f, cut("masks")), f"{UP}: its masks are"),
        (lambda f: other_tensors(f, cut("values")), f"{UP}: its offsets end"),
        (lambda f: other_tensors(f, cut("offsets")), f"{UP}: its offsets are"),
        (lambda f: other_tensors(f, add("values", 3, 1), False), f"{UP}.values: is not what was"),
        (lambda f: other_tensors(f, lambda t: t.pop(f"{UP}.values")), f"{UP}.values is missing"),
        (lambda f: other_tensors(f, lambda t: t.pop("model.norm.weight")), "missing keys"),
        (lambda f: other_tensors(f, lambda t: t.pop("model.norm.weight"), False), "norm.weight is"),
        (lambda f: other_tensors(f, lambda t: t.update(x=torch.ones(1)), False), "x: no checksum"),
    ],
)  # fmt: skip
def test_damage_is_named_at_load(damage: Any, told: str, packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(packed, folder)
    damage(folder)
    with pytest.raises(UserError, match=told.replace("(", r"\(")):
        load_model(folder)


def test_a_missing_shard_is_found(tmp_path: Path) -> None:
    """A shard that the index does not name any more takes its checksums with it."""
    folder = tiny_pruned("llama", tmp_path / "dense", shard=20_000)
    pack_checkpoint(folder, tmp_path / "packed")
    index = read_json(tmp_path / "packed" / "model.safetensors.index.json")
    first = min(index["weight_map"].values())
    index["weight_map"] = {n: file for n, file in index["weight_map"].items() if file != first}
    (tmp_path / "packed" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="were written"):
        from_pretrained(tmp_path / "packed")
