"""The library path on a pretended GPU: no mixed devices, no races, the numbers of a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from efficientllava.allocation.context import Allocation, Risk
from efficientllava.allocation.scoring.executors import worker_devices
from efficientllava.allocation.search.algorithm import Search, SearchGoal, SearchInputs
from efficientllava.calibration.opened import OpenModel
from efficientllava.calibration.working_set import Tokens, search_bytes
from efficientllava.database import storage
from efficientllava.database.build import build_database
from efficientllava.database.offload import offload_database
from efficientllava.database.offloaded import Machine, offloaded
from efficientllava.database.solutions import open_database
from efficientllava.errors import UserError
from efficientllava.models.checkpoint import load_model
from efficientllava.models.families import adapter_for
from efficientllava.offload.blocks_on_disk import blocks_on_disk
from efficientllava.offload.devices import open_device, require_device
from efficientllava.offload.placement import RESERVE, needs_of, shape_of
from efficientllava.parameters import (
    FinalizeParameters,
    MachineParameters,
    ObsParameters,
    Parameters,
    SearchParameters,
)
from efficientllava.parsing import parse_parameters
from efficientllava.pruning.finalize import require_same_logits
from efficientllava.pruning.masked import prune_masked
from tests.conftest import random_llava, random_proxy
from tests.pretend_gpu import GPU, PretendGPU, Race, Stream, marked, pretend_gpu

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
LEVELS = [0.4, 0.5, 0.6]
SEARCH = SearchParameters(
    candidates=4, rounds=2, survivors=2, projector_steps=2, projector_batch=4,
    projector_learning_rate=1e-2,
)  # fmt: skip

RISK = Risk("mean_log_norm", 0.5)


def test_the_pretended_gpu_refuses_what_a_real_one_refuses(monkeypatch: Any) -> None:
    with pretend_gpu(monkeypatch) as gpu:
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        assert there.device == GPU and here.device.type == "cpu"
        assert (there * 2)[:2].device == GPU
        assert (there * torch.tensor(2.0)).device == GPU
        with pytest.raises(RuntimeError, match="same device"):
            here + there
        with pytest.raises(RuntimeError, match="same device"):
            torch.nn.functional.linear(there, torch.ones(2, 3))
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert there.cpu().device.type == "cpu"
        assert there.to("cpu", torch.float64).dtype == torch.float64
        assert gpu.waits == ["cpu", "cpu"]
        linear = torch.nn.Linear(3, 2).to("cuda")
        linear(there).sum().backward()
        assert linear.weight.grad is not None and linear.weight.grad.device == GPU


def test_the_pretended_gpu_sees_races(monkeypatch: Any) -> None:
    with pretend_gpu(monkeypatch) as gpu:
        memory, weight = torch.zeros(4, device="cuda"), torch.ones(4)
        gpu.watch.add(memory.data_ptr())
        side: Stream = torch.cuda.Stream()  # type: ignore[assignment]
        with torch.cuda.stream(side):  # type: ignore[arg-type]
            memory.copy_(weight)
        with pytest.raises(Race, match="has not been waited for"):
            memory.sum()
        torch.cuda.current_stream().wait_event(side.record_event())  # type: ignore[arg-type]
        memory.sum()
        with torch.cuda.stream(side), pytest.raises(Race, match="still reads"):  # type: ignore[arg-type]
            memory.copy_(weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_compact_matrices_are_packed_and_decoded_on_the_device(
    monkeypatch: Any, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((5, 16), (7, 21), (1, 3)):
        matrix = torch.randn(rows, columns, generator=generator).to(dtype)
        matrix[torch.rand(rows, columns, generator=generator) < 0.5] = 0.0
        matrix[0, 0] = -0.0
        wanted = storage.stored("w", matrix, "compact")
        with pretend_gpu(monkeypatch) as gpu:
            found = storage.stored("w", matrix.to(GPU), "compact")
            assert all(marked(tensor) for tensor in found.values())
            weight = torch.full((rows, columns), 7.0, dtype=dtype, device=GPU)
            gpu.waits.clear()
            storage.restore_into(wanted, "w", weight)
            assert gpu.waits == []
            back = weight.cpu()
        for key, tensor in wanted.items():
            assert torch.equal(tensor.view(torch.uint8), found[key].view(torch.uint8))
        assert torch.equal(back.view(torch.uint8), matrix.view(torch.uint8))


def chain(folder: Path, device: torch.device | None, memory: float | None, storage: str) -> Any:
    """Database, search and final model, as the stages run them; and what was placed where."""
    proxy, pruning = random_proxy(), ObsParameters(storage=storage, kernel="eager")  # type: ignore[arg-type]
    checkpoint = folder / "model"
    adapter = adapter_for(load_model(checkpoint))
    with blocks_on_disk(adapter, checkpoint, folder / "b", device) as kept:
        watch(kept)
        build_database(adapter, proxy, LEVELS, pruning, folder / "db", folder / "w", {})
    machine = Machine(device or torch.device("cpu"), memory)
    with offloaded(checkpoint, [folder / "db"], proxy, machine, folder / "p", 4) as found:
        watch(found.blocks)
        result = Search(
            SearchInputs(found.adapter, proxy, found.database, found.blocks),
            SearchGoal(LEVELS, 0.5, SEARCH),
            MachineParameters(),
            folder / "s",
            {},
        ).run()
        placement = found.placement
    adapter = adapter_for(load_model(checkpoint))
    projector = {name: tensor.cpu() for name, tensor in result.projector.items()}
    with blocks_on_disk(adapter, checkpoint, folder / "b", device) as kept:
        watch(kept)
        record = prune_masked(
            OpenModel(adapter, kept),
            proxy,
            "obs",
            Allocation(result.policy, "search", projector, risk=RISK),
            Parameters(
                obs=pruning, search=SEARCH, finalize=FinalizeParameters(refine="least_squares")
            ),
            open_database(folder / "db"),
        )
        (folder / "saved").mkdir()
        kept.save_weights(folder / "saved")
        adapter.model.config.save_pretrained(folder / "saved")
        reloaded = load_model(folder / "saved")
        with blocks_on_disk(adapter_for(reloaded), folder / "saved", folder / "r", device):
            require_same_logits(adapter.model, reloaded, proxy)
    saved = {
        name: weight.clone() for name, weight in load_model(folder / "saved").state_dict().items()
    }
    return (result.history, result.rounds, record, projector, saved), placement


def least_memory(folder: Path) -> float:
    """GiB in which only streaming fits."""
    adapter, tokens = adapter_for(load_model(folder / "model")), Tokens.of(random_proxy(), 4)
    needs = needs_of(adapter, search_bytes(shape_of(adapter), tokens))
    return (needs.fixed + needs.working + 2 * needs.largest_block + RESERVE + 64) / 2**30


def assert_same(one: Any, other: Any) -> None:
    """Equal to the bit, tensors too."""
    if isinstance(one, dict) and any(isinstance(each, torch.Tensor) for each in one.values()):
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    else:
        assert one == other


def watch(kept: Any) -> None:
    """Have the order of all that uses a stream's memory checked."""
    modes = [
        m for m in torch.overrides._get_current_function_mode_stack() if isinstance(m, PretendGPU)
    ]
    if kept is not None and kept.stream is not None:
        for gpu in modes:
            gpu.watch |= {each.memory.data_ptr() for each in kept.stream._slots}
            gpu.watch.add(kept.stream._pinned._memory.data_ptr())


@pytest.mark.parametrize("storage", ["dense", "compact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_database_search_and_final_model(
    tmp_path: Path,
    monkeypatch: Any,
    dtype: torch.dtype,
    storage: str,
) -> None:
    model = random_llava().to(dtype)
    for name in ("cpu", "whole", "streamed"):
        model.save_pretrained(tmp_path / name / "model")
    wanted, _ = chain(tmp_path / "cpu", None, None, storage)
    with pretend_gpu(monkeypatch):
        device, least = open_device("cuda"), least_memory(tmp_path / "cpu")
        whole, all_there = chain(tmp_path / "whole", device, None, storage)
        streamed, little = chain(tmp_path / "streamed", device, least, storage)
    assert (all_there.blocks, all_there.database) == ("device", "device")
    assert (little.blocks, little.database) == ("streamed", "host")
    for one, other in zip(whole, streamed, strict=True):
        assert_same(one, other)
    # on a GPU the Hessian's factor is made by other routines: equal to rounding
    assert [each.genes for each in whole[0]] == [each.genes for each in wanted[0]]
    for one, other in zip(whole[0], wanted[0], strict=True):
        assert one.loss == pytest.approx(other.loss, rel=TOLERANCE[dtype])
    same = [((whole[4][n] == 0) == (w == 0)).float().mean() for n, w in wanted[4].items()]
    assert min(same) > 0.99


@pytest.mark.parametrize(
    ("built", "name", "count", "message"),
    [
        (None, "cuda", 0, "built for the CPU alone.*\n.*CUDA build.*compute on the cpu"),
        ("13.0", "cuda", 0, "sees no GPU.*\n.*nvidia-smi"),
        ("13.0", "cuda:2", 2, "sees 2 GPUs, numbered from 0.*\n.*cuda:0 to cuda:1"),
    ],
)
def test_a_device_that_is_not_there_is_told(
    monkeypatch: Any, built: str | None, name: str, count: int, message: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(UserError, match=message) as told:
        require_device(name)
    assert told.value.where == f"params.yaml, machine.device: {name}"


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "mps"])
def test_unknown_devices_are_bad_parameters(name: str) -> None:
    with pytest.raises(UserError, match="machine.device"):
        parse_parameters({"machine": {"device": name}})


def test_worker_processes_share_the_gpus_out(monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    three = MachineParameters(workers=3, executor="processes", device="cuda")
    assert worker_devices(three) == ["cuda:0", "cuda:1", "cuda:0"]
    assert worker_devices(three.model_copy(update={"device": "cuda:1"})) == ["cuda:1"] * 3
    dask = MachineParameters(workers=2, executor="dask", device="cuda")
    assert worker_devices(dask) == ["cuda"] * 2


def test_a_database_in_host_memory_is_the_same(tmp_path: Path, adapter: Any) -> None:
    parameters = ObsParameters(storage="compact")
    build_database(adapter, random_proxy(), LEVELS, parameters, tmp_path / "d", tmp_path / "w", {})
    opened = open_database(tmp_path / "d")
    assert offload_database(opened, "disk", torch.device("cpu")) is opened
    for where in ("host", "device"):
        copied = offload_database(opened, where, torch.device("cpu"))  # type: ignore[arg-type]
        assert copied.tensors.keys() == opened.tensors.keys()
        assert all(torch.equal(copied.tensors[k], t) for k, t in opened.tensors.items())
