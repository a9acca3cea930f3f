"""Packed experts of mixtures: every form of files, dense experts among packed ones, damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from efficientllava.commands.verify import verify
from efficientllava.errors import UserError
from efficientllava.models.checkpoint import load_model
from efficientllava.models.families import adapter_for
from efficientllava.models.packed import record_of
from efficientllava.models.weight_files import weight_files
from efficientllava.pruning.sequential import matrix_row
from efficientllava.reading import tensors as tensors_module
from efficientllava.sparse import SparseLinear, pack_checkpoint, unpack_checkpoint
from efficientllava.sparse.experts.layer import SparseExperts
from efficientllava.sparse.record import packed_settings
from efficientllava.sparse.record import verify as check_files
from tests.models.families import TINY
from tests.sparse.packed import from_pretrained, logits
from tests.sparse.test_checkpoint import contents
from tests.sparse.test_loading import CLOSE, other_tensors

EXPERTS = "mlp.experts"
DENSE = 1
SHARES = (0.5, 0.0, 0.9, 1.0)
"""Zeros of the matrices of each expert."""


def mixture(name: str) -> Any:
    """A tiny mixture in float32: expert 1 has no zeros, the others have more and more."""
    model, processor = TINY[name].build()
    generator = torch.Generator().manual_seed(0)
    for matrix in adapter_for(model).matrices:
        share = 0.5 if matrix.expert is None else SHARES[matrix.expert]
        weight = matrix.weight.clone()
        weight[torch.rand(weight.shape, generator=generator) < share] = 0
        matrix.replace(weight)
    return model, processor


def stored(name: str, form: str, folder: Path) -> Path:
    """A mixture in a folder: with experts `apart` or stacked `as in the model` or `transposed`."""
    model, processor = mixture(name)
    model.save_pretrained(folder, save_original_format=form == "apart", max_shard_size="20KB")
    processor.save_pretrained(folder)
    if form == "transposed":
        for file in folder.glob("*.safetensors"):
            tensors = load_file(file)
            for key, tensor in tensors.items():
                if EXPERTS in key and tensor.dim() == 3:
                    tensors[key] = tensor.transpose(1, 2).contiguous()
            save_file(tensors, file, {"format": "pt"})
    matrices = adapter_for(model).matrices
    rows = [
        matrix_row(each.name, 0, _zeros(each) / each.size, each.weight, each.weight, None, 0)
        for each in matrices
    ]
    policy = {each.name: _zeros(each) / each.size for each in matrices}
    record = {"matrices": rows, "policy": policy, "method": "magnitude", "ratio": 0.5}
    (folder / "pruning.json").write_text(json.dumps(record))
    return folder


def _zeros(matrix: Any) -> int:
    return int((matrix.weight == 0).sum())


FORMS = {
    "qwen3_moe": "apart",
    "mixtral": "apart",
    "olmoe": "as in the model",
    "qwen3_vl_moe": "transposed",
    "qwen3_5_moe": "as in the model",
}


@pytest.fixture(scope="module", params=FORMS)
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A dense and a packed checkpoint of a family, and the form of the dense one."""
    work, form = tmp_path_factory.mktemp(request.param), FORMS[request.param]
    dense = stored(request.param, form, work / "dense")
    pack_checkpoint(dense, work / "packed")
    return dense, work / "packed", form


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed mixture in one file, with its experts apart."""
    work = tmp_path_factory.mktemp("qwen3_moe")
    model, processor = mixture("qwen3_moe")
    model.save_pretrained(work / "dense")
    processor.save_pretrained(work / "dense")
    pack_checkpoint(work / "dense", work / "packed")
    return work / "packed"


def test_every_form_comes_back_and_answers_the_same(folders: Any, tmp_path: Path) -> None:
    dense, packed, form = folders
    unpack_checkpoint(packed, tmp_path / "unpacked")
    assert contents(tmp_path / "unpacked") == contents(dense)
    section = json.loads((packed / "config.json").read_text())["quantization_config"]
    turned = {stack["transposed"] for stack in section["stacked"].values()}
    assert turned == {"apart": set(), "as in the model": {False}, "transposed": {True}}[form]
    before, after = load_model(dense), load_model(packed)
    assert (logits(before) - logits(after)).abs().max() <= CLOSE[torch.float32]
    prompt = {"input_ids": torch.tensor([[5, 9, 7]]), "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(after.generate(**prompt), before.generate(**prompt))
    experts = [each for each in after.modules() if isinstance(each, SparseExperts)]
    assert len(experts) == len(adapter_for(after).blocks)
    for module in experts:
        for number in range(module.num_experts):
            for layer in module.get_submodule(str(number)).children():
                assert isinstance(layer, SparseLinear) == (number != DENSE)
    assert "matrices with the zeros of their policy" in verify(packed)


def test_a_loaded_mixture_is_saved_cast_and_dequantized(folders: Any, tmp_path: Path) -> None:
    dense, packed, _ = folders
    before, model = from_pretrained(dense), from_pretrained(packed)
    model.save_pretrained(tmp_path / "again", max_shard_size="9KB")
    unpack_checkpoint(tmp_path / "again", tmp_path / "unpacked")
    state = from_pretrained(tmp_path / "unpacked").state_dict()
    assert all(torch.equal(state[name], each) for name, each in before.state_dict().items())
    short = from_pretrained(packed, dtype=torch.bfloat16)
    assert torch.equal(logits(short), logits(model.to(torch.bfloat16)))
    short.save_pretrained(tmp_path / "short")
    unpack_checkpoint(tmp_path / "short", tmp_path / "back")
    files = (tmp_path / "back").glob("*.safetensors")
    held = {name: each for file in files for name, each in load_file(file).items()}
    assert {each.dtype for name, each in held.items() if "experts" in name} == {torch.bfloat16}
    plain = from_pretrained(tmp_path / "short").dequantize()
    assert not any(isinstance(each, SparseExperts | SparseLinear) for each in plain.modules())
    state = from_pretrained(dense, dtype=torch.bfloat16).state_dict()
    for other in (plain, from_pretrained(tmp_path / "back")):
        assert all(torch.equal(state[name], each) for name, each in other.state_dict().items())


def test_int8_experts_are_close(folders: Any, tmp_path: Path) -> None:
    dense, _, _ = folders
    settings = pack_checkpoint(dense, tmp_path / "packed", dtype="int8")
    assert 0 < max(settings.errors.values()) < 0.01
    unpack_checkpoint(tmp_path / "packed", tmp_path / "unpacked")
    before, after = from_pretrained(dense), from_pretrained(tmp_path / "unpacked")
    assert (logits(from_pretrained(tmp_path / "packed")) - logits(after)).abs().max() < 1e-4
    for name, weight in after.state_dict().items():
        assert weight.dtype == before.state_dict()[name].dtype


@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_module_computes_what_the_dense_one_does(dtype: torch.dtype, tokens: int) -> None:
    """Of 8 experts one is never chosen, and a token may choose its experts in any order."""
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeConfig, Qwen3MoeExperts

    torch.manual_seed(0)
    config = Qwen3MoeConfig(hidden_size=64, moe_intermediate_size=32, num_experts=8)
    config._experts_implementation = "eager"
    dense: Any = Qwen3MoeExperts(config).to(dtype).requires_grad_(False)
    for weight in (dense.gate_up_proj, dense.down_proj):
        weight.normal_(std=0.2).mul_(torch.rand(weight.shape) < 0.5)
    sparse = sparse_of(dense)
    hidden = torch.randn(tokens, 64).to(dtype)
    index = torch.stack([torch.randperm(7)[:2] for _ in range(tokens)])
    weights = torch.rand(tokens, 2).to(dtype)
    expected = dense(hidden, index, weights)
    assert torch.allclose(sparse(hidden, index, weights), expected, atol=0.05, rtol=0.02) and (
        dtype != torch.float32
        or torch.allclose(sparse(hidden, index, weights), expected, atol=1e-5)
    )
    with pytest.raises(UserError, match="no backward pass"):
        sparse(hidden.requires_grad_(), index, weights).sum().backward()


def sparse_of(dense: Any) -> SparseExperts:
    """A module of transformers with its experts' matrices packed, gate and up apart."""
    from efficientllava.sparse.inference import for_inference

    layers = []
    for gate_up, down in zip(dense.gate_up_proj, dense.down_proj, strict=True):
        gate, up = gate_up.chunk(2)
        parts = {"gate_proj": gate, "up_proj": up, "down_proj": down}
        layers.append({name: SparseLinear.from_dense(linear(each)) for name, each in parts.items()})
    sparse: Any = for_inference(SparseExperts(dense, layers, {}), huge_pages=False)
    return sparse


def linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def test_experts_take_little_more_than_half_of_the_bytes(tmp_path: Path) -> None:
    from transformers import Qwen3MoeForCausalLM

    model, processor = TINY["qwen3_moe"].build()
    sizes = {"hidden_size": 256, "moe_intermediate_size": 128, "num_hidden_layers": 1}
    model = Qwen3MoeForCausalLM(type(model.config)(**model.config.to_dict() | sizes)).bfloat16()
    for matrix in adapter_for(model).matrices:
        chance = torch.rand(matrix.weight.shape)
        matrix.replace(matrix.weight.masked_fill(chance < 0.5, 0))
    model.save_pretrained(tmp_path / "dense")
    processor.save_pretrained(tmp_path / "dense")
    pack_checkpoint(tmp_path / "dense", tmp_path / "packed")
    bytes_of = [
        sum(tensor.nbytes for name, tensor in load_file(file).items() if EXPERTS in name)
        for folder in ("dense", "packed")
        for file in (tmp_path / folder).glob("*.safetensors")
    ]
    assert bytes_of[1] <= 0.57 * bytes_of[0] and bytes_of[0] == 4 * 3 * 256 * 128 * 2


def test_a_mixture_without_zeros_in_experts_stays_stacked(tmp_path: Path) -> None:
    model, processor = TINY["qwen3_vl_moe"].build()
    for matrix in adapter_for(model).matrices:
        if matrix.expert is None:
            chance = torch.rand(matrix.weight.shape)
            matrix.replace(matrix.weight.masked_fill(chance < 0.5, 0))
    model.save_pretrained(tmp_path / "dense")
    processor.save_pretrained(tmp_path / "dense")
    settings = pack_checkpoint(tmp_path / "dense", tmp_path / "packed")
    assert not settings.stacked and not any(EXPERTS in name for name in settings.modules)
    after = load_model(tmp_path / "packed")
    assert not any(isinstance(each, SparseExperts) for each in after.modules())
    assert (logits(after) - logits(model.eval())).abs().max() <= CLOSE[torch.float32]


def test_a_file_is_opened_a_few_times(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once a tensor: reading the header of a mixture's file takes tens of milliseconds."""
    opened, whole = [], tensors_module.safe_open

    def counting(path: Path, *arguments: Any, **options: Any) -> Any:
        opened.append(path)
        return whole(path, *arguments, **options)

    monkeypatch.setattr(tensors_module, "safe_open", counting)
    settings = packed_settings(packed)
    assert settings is not None and len(settings.modules) > 20
    check_files(weight_files(packed), settings, packed / "config.json")
    unpack_checkpoint(packed, packed.parent / "unpacked")
    assert len(opened) <= 24


GATE = f"model.layers.1.{EXPERTS}.2.gate_proj"
PLAIN = f"model.layers.0.{EXPERTS}.{DENSE}.down_proj.weight"


def add(name: str, index: int, amount: int) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[index] += amount

    return change


def cut(tensors: dict[str, torch.Tensor]) -> None:
    tensors[PLAIN] = tensors[PLAIN][:-1].clone()


@pytest.mark.parametrize(
    ("damage", "told", "recorded"),
    [
        (add(f"{GATE}.masks", 3, 1), f"{GATE}: the masks", True),
        (add(f"{GATE}.offsets", 1, 2**40), f"{GATE}: its offsets", True),
        (add(f"{GATE}.values", 3, 1), f"{GATE}.values: is not what was written", False),
        (lambda t: t.pop(f"{GATE}.values"), f"{GATE}.values is missing", True),
        (lambda t: t.pop(f"{GATE}.weight"), "layers.1.mlp.experts.2.gate_proj is missing", True),
        (lambda t: t.pop(PLAIN), "layers.0.mlp.experts.1.down_proj is missing", True),
        (lambda t: t.pop(PLAIN), f"tensor {PLAIN} is missing", False),
        (cut, "experts.1.down_proj has another shape", True),
    ],
)  # fmt: skip
def test_damaged_experts_are_named(
    damage: Any, told: str, recorded: bool, packed: Path, tmp_path: Path
) -> None:
    shutil.copytree(packed, tmp_path / "damaged")
    other_tensors(tmp_path / "damaged", damage, checksums=recorded)
    with pytest.raises(UserError, match=told):
        load_model(tmp_path / "damaged")


def test_a_stack_without_one_of_its_experts_is_not_unpacked(tmp_path: Path) -> None:
    folder = stored("qwen3_vl_moe", "transposed", tmp_path / "dense")
    pack_checkpoint(folder, tmp_path / "packed")
    name = "model.language_model.layers.1.mlp.experts.1.down_proj"
    file = next(
        each
        for each in (tmp_path / "packed").glob("*.safetensors")
        if f"{name}.weight" in record_of(each)["tensors"]
    )
    tensors, record = load_file(file), record_of(file)
    del tensors[f"{name}.weight"], record["tensors"][f"{name}.weight"]
    for each in (tmp_path / "packed").glob("*.safetensors"):
        other = record_of(each) | {"total": record["total"] - 1}
        kept = tensors if each == file else load_file(each)
        other["tensors"] = record["tensors"] if each == file else other["tensors"]
        save_file(kept, each, {"format": "pt", "efficientllava_sparse": json.dumps(other)})
    with pytest.raises(UserError, match=f"{name} is missing"):
        unpack_checkpoint(tmp_path / "packed", tmp_path / "out")
    with pytest.raises(UserError, match="experts.1.down_proj is missing"):
        load_model(tmp_path / "packed")
    assert not (tmp_path / "out").exists()
