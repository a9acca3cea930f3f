"""Further methods and the evaluation on a pretended GPU: the same numbers as on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from efficientllava.allocation.context import Allocation
from efficientllava.allocation.owl import outlier_policy
from efficientllava.benchmarks.generation import Asked, generated_tokens
from efficientllava.benchmarks.records import Record
from efficientllava.benchmarks.text_loss import text_loss
from efficientllava.calibration.opened import OpenModel
from efficientllava.data.questions import Question
from efficientllava.models.checkpoint import load_model
from efficientllava.models.families import adapter_for
from efficientllava.models.likelihood import choice_likelihoods
from efficientllava.offload.blocks_on_disk import blocks_on_disk
from efficientllava.parameters import (
    FinalizeParameters,
    ObsParameters,
    Parameters,
)
from efficientllava.progress import silent
from efficientllava.pruning.masked import prune_masked
from efficientllava.pruning.methods import OURS, StructuredMethod
from efficientllava.pruning.sequential import prune_model
from efficientllava.pruning.structured.structured import prune_structure
from tests.conftest import random_llava, random_proxy
from tests.export.conftest import tiny_model, tiny_processor
from tests.pretend_gpu import GPU, pretend_gpu

CRITERIA = ["magnitude", "wanda"]
REMOVALS = [method.removal for method in OURS.values() if isinstance(method, StructuredMethod)]


def finished(folder: Path, update: str, device: torch.device | None) -> Any:
    """A record and the weights it tells of."""
    model = load_model(folder / "model")
    adapter, pruning = adapter_for(model), ObsParameters()
    policy = {matrix.name: 0.5 for matrix in adapter.matrices}
    parameters = Parameters(obs=pruning, finalize=FinalizeParameters(keep_last_block=False))
    if update in REMOVALS:
        model.to(device or "cpu")
        record = prune_structure(adapter, random_proxy(), update, 0.5, parameters)
        return record, {name: weight.cpu() for name, weight in model.state_dict().items()}
    with blocks_on_disk(adapter, folder / "model", folder / "work", device) as kept:
        opened, allocation = OpenModel(adapter, kept), Allocation(policy, "uniform")
        record = prune_masked(opened, random_proxy(), update, allocation, parameters)
    return record, {name: weight.cpu() for name, weight in model.state_dict().items()}


@pytest.mark.parametrize("update", [*CRITERIA, *REMOVALS])
def test_methods_without_obs(tmp_path: Path, monkeypatch: Any, update: str) -> None:
    random_llava(num_hidden_layers=4).save_pretrained(tmp_path / "model")
    record, weights = finished(tmp_path, update, None)
    with pretend_gpu(monkeypatch):
        same_record, same_weights = finished(tmp_path, update, GPU)
    assert record == same_record
    assert weights.keys() == same_weights.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, same_weights[name]), name


def test_rows_by_their_importance(tmp_path: Path, monkeypatch: Any) -> None:
    random_llava().save_pretrained(tmp_path / "model")
    found = []
    for device in (None, GPU):
        with pretend_gpu(monkeypatch):
            adapter = adapter_for(load_model(tmp_path / "model"))
            importance = {
                matrix.name: torch.linspace(0.1, 1.0, len(matrix.weight), dtype=torch.float64)
                for matrix in adapter.matrices
            }
            with blocks_on_disk(adapter, tmp_path / "model", tmp_path / "work", device):
                policy = {matrix.name: 0.5 for matrix in adapter.matrices}
                prune_model(
                    adapter,
                    random_proxy(),
                    "obs",
                    policy,
                    ObsParameters(kernel="eager"),
                    importance=importance,
                )
            found.append({matrix.name: matrix.weight.cpu() for matrix in adapter.matrices})
    for name, weight in found[0].items():
        assert torch.equal(weight == 0, found[1][name] == 0), name
        torch.testing.assert_close(weight, found[1][name], rtol=1e-4, atol=1e-5)
        assert (weight[0] == 0).sum() > (weight[-1] == 0).sum()


def test_ratios_by_outliers(tmp_path: Path, monkeypatch: Any) -> None:
    random_llava().save_pretrained(tmp_path / "model")
    found = []
    for device in (None, GPU):
        with pretend_gpu(monkeypatch):
            adapter = adapter_for(load_model(tmp_path / "model"))
            with blocks_on_disk(adapter, tmp_path / "model", tmp_path / "work", device):
                parameters = ObsParameters()
                found.append(outlier_policy(adapter, random_proxy(), 0.5, parameters, 3.0, 0.1))
    assert found[0] == found[1]


@pytest.mark.parametrize("streamed", [False, True], ids=["there", "streamed"])
def test_evaluation(tmp_path: Path, monkeypatch: Any, streamed: bool) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    processor, ids = tiny_processor(), torch.randint(5, 50, (4, 12))
    asked = [Asked(Record(str(n), "w1 w2", None), "w1 w2 w" + "3" * n) for n in (1, 2)]
    questions = [
        Question(id=str(n), question="w4 w5", choices=choices, answer=0, hint="", image=None,
                 subject="natural science", grade="grade2", split="test")
        for n, choices in enumerate((("w1", "w2"), ("w1 w3", "w2", "w7 w8")))
    ]  # fmt: skip

    def measured(model: Any) -> Any:
        return (
            generated_tokens(model, processor, asked, 5).cpu().tolist(),
            text_loss(model, ids, batch_size=2),
            choice_likelihoods(model, processor, questions, 2, silent),
        )

    wanted = measured(load_model(tmp_path / "model"))
    with pretend_gpu(monkeypatch):
        model = load_model(tmp_path / "model", device="cpu" if streamed else GPU)
        if streamed:
            with blocks_on_disk(adapter_for(model), tmp_path / "model", tmp_path / "w", GPU):
                found = measured(model)
        else:
            found = measured(model)
    assert found == wanted
