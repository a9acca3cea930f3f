"""Blocks in files: weights that have another dtype there, and tied weights that lie there twice."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, PreTrainedModel

from efficientllava.allocation.context import Allocation
from efficientllava.calibration.opened import OpenModel
from efficientllava.data.proxy import ProxyData
from efficientllava.files import read_json, write_json
from efficientllava.models.checkpoint import load_model, save_checkpoint
from efficientllava.models.families import adapter_for
from efficientllava.offload.blocks_on_disk import blocks_on_disk
from efficientllava.parameters import ObsParameters, Parameters, SearchParameters
from efficientllava.pruning.finalize import require_kept_weights, require_same_logits
from efficientllava.pruning.masked import prune_masked
from efficientllava.pruning.methods import OURS
from tests.models.families import TINY
from tests.pretend_gpu import GPU, pretend_gpu


def checkpoint(family: str, folder: Path, shard: int) -> Path:
    model, processor = TINY[family].build()
    save_checkpoint(model, processor, folder, shard=shard)
    return folder


def pruned(dense: Path, work: Path, device: torch.device | None = None) -> PreTrainedModel:
    """A magnitude-pruned model with its blocks in files, saved, loaded again and compared."""
    model = load_model(dense)
    adapter = adapter_for(model)
    size = model.get_input_embeddings().num_embeddings
    text = torch.randint(20, size, (4, 12), generator=torch.Generator().manual_seed(0))
    proxy = ProxyData(text.masked_fill(text == model.config.image_token_id, 20), None)
    policy = {matrix.name: 0.5 for matrix in adapter.matrices}
    pruning = ObsParameters(calibration="text")
    search = SearchParameters(evolve_projector=False, fitness_data="text")
    with ExitStack() as ends:
        kept = ends.enter_context(blocks_on_disk(adapter, dense, work / "blocks", device))
        assert kept.prunable == {f"{name}.weight" for name in policy}
        parameters = Parameters(obs=pruning, search=search)
        opened, allocation = OpenModel(adapter, kept), Allocation(policy, "uniform")
        prune_masked(opened, proxy, "magnitude", allocation, parameters)
        save_checkpoint(model, dense, work / "pruned", save_weights=kept.save_weights)
        reloaded = load_model(work / "pruned")
        if device is None:
            require_same_logits(model, reloaded, proxy)
    require_kept_weights(load_model(dense), reloaded, OURS["magnitude"], {})
    assert not list((work / "blocks").iterdir())
    return reloaded


@pytest.mark.parametrize("shard, device", [(20_000, "cpu"), (10**9, "cpu"), (10**9, "gpu")])
@pytest.mark.parametrize(
    "stored, configured",
    [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "bfloat16")],
)
def test_dtype_of_file_and_configuration_differ(
    tmp_path: Path, monkeypatch: Any, stored: str, configured: str, shard: int, device: str
) -> None:
    dense = checkpoint("llava", tmp_path / "dense", shard)
    for file in dense.glob("*.safetensors"):
        cast = {name: each.to(getattr(torch, stored)) for name, each in load_file(file).items()}
        save_file(cast, file.with_name("new"), metadata={"format": "pt"})
        file.with_name("new").replace(file)
    config = read_json(dense / "config.json")
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = configured
    write_json(dense / "config.json", config)
    with ExitStack() as ends:
        if device == "gpu":
            ends.enter_context(pretend_gpu(monkeypatch))
        model = pruned(dense, tmp_path, GPU if device == "gpu" else None)
    assert {value.dtype for value in model.parameters()} == {getattr(torch, configured)}
    assert len(list((tmp_path / "pruned").glob("*.safetensors"))) == len(
        list(dense.glob("*.safetensors"))
    )
    before = AutoModelForImageTextToText.from_pretrained(dense).state_dict()
    for name, value in model.state_dict().items():
        kept = (value == 0) | (value == before[name])
        assert bool(kept.all()), name


def test_shards_of_different_dtypes(tmp_path: Path) -> None:
    dense = checkpoint("llava", tmp_path / "dense", 20_000)
    for file in sorted(dense.glob("*.safetensors"))[::2]:
        cast = {name: each.to(torch.bfloat16) for name, each in load_file(file).items()}
        save_file(cast, file.with_name("new"), metadata={"format": "pt"})
        file.with_name("new").replace(file)
    assert pruned(dense, tmp_path).dtype == torch.float32


def tie(folder: Path, inside: bool, outside: bool) -> None:
    config = read_json(folder / "config.json")
    config["tie_word_embeddings"] = outside
    config["text_config"]["tie_word_embeddings"] = inside
    write_json(folder / "config.json", config)


@pytest.mark.parametrize("inside, outside", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize(
    "family, shard",
    [
        ("llava", 20_000),
        *((name, 10**9) for name in ("llava", "qwen2_5_vl", "smolvlm", "internvl", "paligemma")),
    ],
)
def test_tied_weights_stored_twice(
    tmp_path: Path, family: str, inside: bool, outside: bool, shard: int
) -> None:
    dense = checkpoint(family, tmp_path / "dense", shard)
    tie(dense, inside, outside)
    files = {file: load_file(file) for file in sorted(dense.glob("*.safetensors"))}
    (table,) = (
        each for held in files.values() for n, each in held.items() if "embed_tokens.w" in n
    )
    (name,) = (n for held in files.values() for n in held if "embed_tokens.weight" in n)
    head = (
        "language_model.lm_head.weight" if name.startswith("language_model.") else "lm_head.weight"
    )
    for held in files.values():
        held.pop(head, None)
    last = max(files)
    files[last][head] = table.clone()
    for file, held in files.items():
        file.unlink()
        save_file(held, file, metadata={"format": "pt"})
    if (index := dense / "model.safetensors.index.json").is_file():
        content = read_json(index)
        content["weight_map"][head] = last.name
        write_json(index, content)
    model = pruned(dense, tmp_path)
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "pruned")
    expected = AutoModelForImageTextToText.from_pretrained(dense)
    for each in (model, plain):
        assert torch.equal(each.get_output_embeddings().weight, table)
        tied = expected.lm_head.weight is expected.get_input_embeddings().weight
        assert (each.get_output_embeddings().weight is each.get_input_embeddings().weight) == tied
    if shard == 20_000:
        written = read_json(tmp_path / "pruned" / "model.safetensors.index.json")["weight_map"]
        saved = (tmp_path / "pruned").glob("*.safetensors")
        assert written == {n: file.name for file in saved for n in load_file(file)}


def test_head_stored_in_place_of_tied_embeddings(tmp_path: Path) -> None:
    dense = checkpoint("internvl", tmp_path / "dense", 10**9)
    tensors = load_file(dense / "model.safetensors")
    tensors["language_model.lm_head.weight"] = tensors.pop(
        "language_model.model.embed_tokens.weight"
    )
    save_file(tensors, dense / "new", metadata={"format": "pt"})
    (dense / "new").replace(dense / "model.safetensors")
    model = pruned(dense, tmp_path)
    assert load_file(tmp_path / "pruned" / "model.safetensors").keys() == tensors.keys()
    assert torch.equal(
        model.get_input_embeddings().weight, tensors["language_model.lm_head.weight"]
    )
