"""Database, search, final model and worker processes on a real card: whole, streamed, shared."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from efficientllava.allocation.scoring.workers import ProcessEvaluator, Work
from efficientllava.calibration.proxy_loss import ProxyLoss
from efficientllava.data.proxy import save_proxy
from efficientllava.database.build import build_database
from efficientllava.models.checkpoint import load_model
from efficientllava.models.families import adapter_for
from efficientllava.offload.blocks_on_disk import blocks_on_disk
from efficientllava.parameters import ObsParameters
from tests.conftest import random_llava, random_proxy
from tests.offload.test_devices import LEVELS, TOLERANCE, chain, least_memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_losses_of_streamed_blocks(tmp_path: Path, card: torch.device, dtype: torch.dtype) -> None:
    """The same bits as with all blocks on the card, twice in a row."""
    random_llava(num_hidden_layers=6).to(dtype).save_pretrained(tmp_path / "model")
    whole = load_model(tmp_path / "model", device=card)
    proxy = random_proxy()
    expected = ProxyLoss(adapter_for(whole), proxy, "kl", "text_and_pairs")
    wanted = [expected(adapter_for(whole).language_model) for _ in range(2)]
    adapter = adapter_for(load_model(tmp_path / "model"))
    with blocks_on_disk(adapter, tmp_path / "model", tmp_path / "work", card):
        loss = ProxyLoss(adapter, proxy, "kl", "text_and_pairs")
        assert [loss(adapter.language_model) for _ in range(2)] == wanted


@pytest.mark.parametrize("storage", ["dense", "compact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_whole_against_streamed_against_the_cpu(
    tmp_path: Path, card: torch.device, dtype: torch.dtype, storage: str
) -> None:
    """Up to rounding: the projector's gradient may be summed in another order on CUDA."""
    model = random_llava().to(dtype)
    for name in ("cpu", "whole", "streamed"):
        model.save_pretrained(tmp_path / name / "model")
    on_cpu, _ = chain(tmp_path / "cpu", None, None, storage)
    whole, all_there = chain(tmp_path / "whole", card, None, storage)
    little = least_memory(tmp_path / "streamed")
    streamed, few = chain(tmp_path / "streamed", card, little, storage)
    if card.type == "cuda":
        assert (all_there.blocks, all_there.database) == ("device", "device")
        assert few.blocks == "streamed"
    for other in (streamed, on_cpu):
        assert [each.genes for each in whole[0]] == [each.genes for each in other[0]]
        for one, two in zip(whole[0], other[0], strict=True):
            assert one.loss == pytest.approx(two.loss, rel=TOLERANCE[dtype])
        same = [((whole[4][n] == 0) == (w == 0)).float().mean() for n, w in other[4].items()]
        assert min(same) > 0.99


def _losses(folder: Path, work: Path, device: str, processes: int, policies: Any) -> list[float]:
    names = [str(folder / name) for name in ("model", "proxy", "database")]
    task = Work(
        names[0], names[1], (names[2],), "kl", "text_and_pairs", None, 1, device, None, processes
    )
    sizes = adapter_for(load_model(folder / "model")).sizes
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
    evaluator = ProcessEvaluator(task, lambda: pool, work, sizes)
    try:
        return [loss for _, loss in sorted(dict(evaluator.losses(policies)).items())]
    finally:
        evaluator.close()


def test_processes_that_share_a_card_give_its_losses(tmp_path: Path, card: torch.device) -> None:
    model, proxy = random_llava(), random_proxy()
    model.save_pretrained(tmp_path / "model")
    save_proxy(tmp_path / "proxy", proxy, {})
    adapter = adapter_for(model)
    parameters = ObsParameters(storage="compact")
    build_database(adapter, proxy, LEVELS, parameters, tmp_path / "database", tmp_path / "w", {})
    policies = [
        [LEVELS[(number + index) % 3] for index, _ in enumerate(adapter.matrices)]
        for number in range(6)
    ]
    one = _losses(tmp_path, tmp_path / "one", str(card), 1, policies)
    three = _losses(tmp_path, tmp_path / "three", str(card), 3, policies)
    assert len(set(one)) > 1 and one == three
