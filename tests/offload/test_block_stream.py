"""Blocks that pass through two places on a device give what the whole model gives."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from efficientllava.allocation.context import Allocation, Risk
from efficientllava.allocation.scoring.evaluation import StreamedModel, stitched_models
from efficientllava.allocation.search.algorithm import Search, SearchGoal, SearchInputs
from efficientllava.calibration.opened import OpenModel
from efficientllava.calibration.proxy_loss import ProxyLoss
from efficientllava.database.build import build_database
from efficientllava.database.solutions import open_database
from efficientllava.models.checkpoint import load_model
from efficientllava.models.families import Adapter, adapter_for
from efficientllava.offload.blocks_on_disk import BlocksOnDisk, blocks_on_disk
from efficientllava.parameters import (
    MachineParameters,
    ObsParameters,
    Parameters,
    SearchParameters,
)
from efficientllava.pruning.masked import prune_masked
from tests.conftest import random_llava, random_proxy

CPU = torch.device("cpu")
LEVELS = [0.4, 0.5, 0.6]
ONE = MachineParameters(workers=1)

RISK = Risk("mean_log_norm", 0.5)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A checkpoint of five blocks."""
    model = random_llava(num_hidden_layers=5).to(request.param)
    model.save_pretrained(tmp_path / "model")
    return tmp_path


def loaded(folder: Path) -> Adapter:
    return adapter_for(load_model(folder / "model"))


def test_forward_passes_and_gradients_are_the_same(folder: Path) -> None:
    proxy = random_proxy()
    assert proxy.pairs is not None
    found = []
    for device in (None, CPU):
        adapter = loaded(folder)
        with blocks_on_disk(adapter, folder / "model", folder / "work", device) as kept:
            assert (kept.stream is None) == (device is None)
            loss = ProxyLoss(adapter, proxy, "kl", "text_and_pairs")
            values = [loss(adapter.language_model), loss(adapter.language_model, 0.5)]
            for parameter in adapter.model.parameters():
                parameter.requires_grad_(False)
            trained = list(adapter.projector.parameters())
            for parameter in trained:
                parameter.requires_grad_(True)
            logits = adapter.model(**proxy.pairs.inputs, use_cache=False).logits
            logits.float().logsumexp(-1).sum().backward()
            found.append((values, logits.detach(), [p.grad for p in trained]))
    (values, logits, gradients), (same_values, same_logits, same_gradients) = found
    assert values == same_values
    assert torch.equal(logits, same_logits)
    for gradient, same in zip(gradients, same_gradients, strict=True):
        assert gradient is not None and same is not None
        assert gradient.abs().max() > 0
        assert torch.equal(gradient, same)
    assert all("forward" not in vars(block) for block in adapter.blocks)


def test_no_more_than_two_blocks_are_there(folder: Path) -> None:
    adapter = loaded(folder)
    largest = sum(p.numel() * p.element_size() for p in adapter.blocks[0].parameters())
    with blocks_on_disk(adapter, folder / "model", folder / "work", CPU) as kept:
        assert kept.stream is not None
        memory = [slot.memory for slot in kept.stream._slots]
        assert sum(each.numel() for each in memory) < 2 * largest + 2 * 9 * 256
        seen: list[tuple[int, ...]] = []

        def see(module: torch.nn.Module, args: object, output: object) -> None:
            at = {m.data_ptr(): m.data_ptr() + m.numel() for m in memory}
            inside = [
                index
                for index, block in enumerate(adapter.blocks)
                for start, end in at.items()
                if start <= next(block.parameters()).data_ptr() < end
            ]
            seen.append(tuple(inside))

        for block in adapter.blocks:
            block.register_forward_hook(see)
        adapter.model(input_ids=torch.randint(5, 64, (2, 9)))
    # one runs; the next is on its way and its parameters are still those of the file
    assert seen == [(0,), (1,), (2,), (3,), (4,)]


def test_replaced_weights_are_kept(folder: Path) -> None:
    """Replaced before a block came, while it was there, and after it was sent for."""
    adapter = loaded(folder)
    ids = torch.randint(5, 64, (2, 9))
    wanted = loaded(folder)
    for matrix in wanted.matrices:
        matrix.replace(matrix.weight * 0.5)
    with (
        torch.no_grad(),
        blocks_on_disk(adapter, folder / "model", folder / "work", CPU) as kept,
    ):
        for index, matrix in enumerate(adapter.matrices):
            if index in (0, 9, 30):  # the first block is sent for again, the last one is there
                adapter.model(input_ids=ids)
            matrix.replace(matrix.weight * 0.5)
        logits = adapter.model(input_ids=ids).logits
        assert torch.equal(logits, wanted.model(input_ids=ids).logits)
        (folder / "saved").mkdir()
        kept.save_weights(folder / "saved")
        wanted.model.config.save_pretrained(folder / "saved")
    saved = load_model(folder / "saved")
    for name, weight in wanted.model.state_dict().items():
        assert torch.equal(saved.state_dict()[name], weight), name


@pytest.mark.parametrize("storage", ["dense", "compact"])
def test_database_search_and_final_model_are_the_same(folder: Path, storage: str) -> None:
    proxy = random_proxy()
    pruning = ObsParameters(storage=storage)  # type: ignore[arg-type]
    parameters = SearchParameters(
        candidates=5, rounds=3, survivors=2, projector_steps=3, projector_batch=4,
        projector_learning_rate=1e-2,
    )  # fmt: skip
    results, records, weights = [], [], []
    for name, device in (("disk", None), ("stream", CPU)):
        place = folder / name
        adapter = loaded(folder)
        with blocks_on_disk(adapter, folder / "model", place / "work", device):
            build_database(adapter, proxy, LEVELS, pruning, place / "db", place / "w", {})
        adapter, database = loaded(folder), open_database(place / "db", LEVELS)
        goal = SearchGoal(LEVELS, 0.5, parameters)
        with (
            nullcontext()
            if device is None
            else blocks_on_disk(adapter, folder / "model", place / "work", device) as kept
        ):
            inputs = SearchInputs(adapter, proxy, database, kept)
            found = Search(inputs, goal, ONE, place / "s", {}).run()
        results.append((found.policy, found.history, found.rounds, found.summary))
        adapter = loaded(folder)
        with blocks_on_disk(adapter, folder / "model", place / "work", device) as kept:
            records.append(
                prune_masked(
                    OpenModel(adapter, kept),
                    proxy,
                    "obs",
                    Allocation(found.policy, "search", found.projector, risk=RISK),
                    Parameters(obs=pruning, search=parameters),
                    database,
                )
            )
            kept.release()
            weights.append([kept.weight(matrix).clone() for matrix in adapter.matrices])
    assert (folder / "disk/db/manifest.json").read_bytes() == (
        folder / "stream/db/manifest.json"
    ).read_bytes()
    assert results[0] == results[1]
    assert results[0][2][1]["projector_loss_before"] != results[0][2][1]["projector_loss_after"]
    assert records[0] == records[1]
    for one, other in zip(*weights, strict=True):
        assert torch.equal(one, other)


def test_stitching_lazily_is_stitching(folder: Path) -> None:
    """Between two candidates, and where the next block was sent for with the old one's levels."""
    proxy = random_proxy(pairs=0)
    adapter = loaded(folder)
    build_database(
        adapter,
        proxy,
        LEVELS,
        ObsParameters(storage="compact"),
        folder / "db",
        folder / "w",
        {},
    )
    database = open_database(folder / "db")
    policies = [[LEVELS[(i * k) % 3] for i in range(35)] for k in (1, 2, 3, 1)]
    policies.append([*policies[0][:-1], 0.6 if policies[0][-1] != 0.6 else 0.4])
    wanted, streamed = loaded(folder), loaded(folder)
    (ordinary,) = stitched_models(wanted, database, 1)
    with blocks_on_disk(streamed, folder / "model", folder / "work", CPU) as kept:
        (lazy,) = stitched_models(streamed, database, 1, kept)
        assert isinstance(lazy, StreamedModel)
        losses = ProxyLoss(wanted, proxy, "kl", "text"), ProxyLoss(streamed, proxy, "kl", "text")
        values = []
        for policy in policies:
            ordinary.stitch(policy)
            lazy.stitch(policy)
            values.append((losses[0](wanted.language_model), losses[1](streamed.language_model)))
    assert all(one == other for one, other in values)
    assert len({one for one, _ in values}) == 4


def test_only_streamed_matrices_can_be_stitched_lazily(folder: Path) -> None:
    """Weights of another dtype than their file's stay in memory: nothing brings them."""
    adapter = adapter_for(load_model(folder / "model", torch.float64))
    kept = BlocksOnDisk(adapter, folder / "model", folder / "work")
    with pytest.raises(ValueError, match="not every prunable matrix"):
        StreamedModel(adapter, None, kept)  # type: ignore[arg-type]
