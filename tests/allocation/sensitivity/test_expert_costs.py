"""Costs of experts against autograd on another implementation of them, in float64."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from efficientllava.allocation.gradients.experts import one_by_one
from efficientllava.allocation.sensitivity.costs import (
    Gradients,
    corrected_costs,
    costs_of_unseen,
    fisher_costs,
    scalar_costs,
    sensitivities,
)
from efficientllava.calibration.block_walk import FEW_TOKENS
from efficientllava.calibration.sample_losses import DenseReference
from efficientllava.data.proxy import ProxyData
from efficientllava.database.build import build_database
from efficientllava.database.solutions import Database, open_database
from efficientllava.models.families import Adapter, Matrix, adapter_for
from efficientllava.parameters import ObsParameters
from efficientllava.progress import silent
from tests.allocation.sensitivity.test_costs import labels_of
from tests.models.families import TINY

LEVELS = [0.3, 0.5, 0.7]
SEGMENTS = torch.randint(20, 50, (3, 8), generator=torch.Generator().manual_seed(0))


def away_from(expert: int) -> Any:
    """No token goes to this expert."""

    def hook(module: Any, args: Any, output: Any) -> Any:
        chosen = output[2]
        return (*output[:2], torch.where(chosen == expert, (chosen.flip(-1) + 1) % expert, chosen))

    return hook


def model_of(name: str) -> Any:
    model, _ = TINY[name].build()
    adapter = adapter_for(model)
    for block in adapter.blocks:
        block.get_submodule("mlp.gate").register_forward_hook(away_from(3))
    return model


@pytest.fixture(scope="module", params=["qwen3_moe", "qwen3_vl_moe"])
def case(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Database]:
    folder = tmp_path_factory.mktemp(request.param)
    adapter = adapter_for(model_of(request.param))
    proxy = ProxyData(SEGMENTS, None)
    build_database(adapter, proxy, LEVELS, ObsParameters(), folder / "d", folder / "w", {})
    return request.param, open_database(folder / "d")


def gradients_of(adapter: Adapter, database: Database) -> Gradients:
    reference = DenseReference(adapter, ProxyData(SEGMENTS, None), "text")
    return Gradients(adapter, reference, database, False, 3, silent)


def by_autograd(name: str, model: Any) -> dict[str, tuple[torch.Tensor, ...]]:
    """[tokens, in] inputs and [tokens, out] gradients of every expert's matrix, and its tokens.

    Oracle: every expert computes every token, and the router's weights (0 where it is not chosen)
    sum them; no checkpoints.
    """
    adapter, kept = adapter_for(model.double()), {}

    def watched(matrix: Matrix, given: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        output = given @ matrix.weight.T.clone().requires_grad_(True)
        output.retain_grad()
        kept[matrix.name] = (given, output, share[:, 0] > 0)
        return output

    def dense(module: Any, own: list[Matrix]) -> Any:
        def forward(hidden: torch.Tensor, chosen: Any, weights: torch.Tensor) -> torch.Tensor:
            total = torch.zeros_like(hidden)
            for gate_up, down in zip(own[::2], own[1::2], strict=True):
                share = (weights * (chosen == gate_up.expert)).sum(-1, keepdim=True)
                gate, up = watched(gate_up, hidden, share).chunk(2, dim=-1)
                total = total + share * watched(down, module.act_fn(gate) * up, share)
            return total

        return forward

    for module in {m.module for m in adapter.matrices if m.expert is not None}:
        module.forward = dense(module, [m for m in adapter.matrices if m.module is module])
    logits = model(input_ids=SEGMENTS, use_cache=False).logits[:, :-1].flatten(0, 1)
    draw = random.Random(f"3/{name}/0")
    labels = labels_of(logits, [draw.random() for _ in range(len(logits))])
    functional.cross_entropy(logits, labels, reduction="sum").backward()
    return {key: (x.detach(), y.grad, routed) for key, (x, y, routed) in kept.items()}


def test_costs_are_autograds(case: tuple[str, Database], tmp_path: Path) -> None:
    name, database = case
    adapter = adapter_for(model_of(name))
    costs, _ = fisher_costs(gradients_of(adapter, database), LEVELS, tmp_path)
    told, positions, seen = by_autograd("fisher", model_of(name)), SEGMENTS[:, 1:].numel(), 0
    for row, matrix in zip(costs, adapter.matrices, strict=True):
        if matrix.expert is None:
            continue
        if matrix.expert == 3:
            assert max(row) < 1e-20, matrix.name
            continue
        x, g, _ = told[matrix.name]
        for cost, level in zip(row, LEVELS, strict=True):
            change = (database.solution(matrix.name, level) - matrix.weight).double()
            moved = ((x @ change.T) * g).sum(-1)
            assert cost == pytest.approx(float(moved.square().sum()) / 2 / positions, rel=5e-3)
            seen += cost > 1e-9
    assert seen > len(LEVELS) * 2 * len(adapter.blocks)


def test_experts_that_gradients_do_not_reach_are_not_free() -> None:
    """They cost what a token of their block's experts costs, for all that calibration saw."""
    costs = np.array([[1.0, 3.0], [0.0, 0.0], [3.0, 5.0], [7.0, 7.0], [0.0, 0.0]])
    parameters = ["a", "a", "a", "dense", "a"]
    routed = np.array([100, 60, 100, 999, 1])
    shared = costs_of_unseen(costs, [1, 4], routed, parameters)
    per_token = np.array([4.0, 8.0]) / 261
    np.testing.assert_allclose(shared[1], 60 * per_token)
    np.testing.assert_allclose(shared[4], FEW_TOKENS * per_token)
    np.testing.assert_array_equal(shared[[0, 2, 3]], costs[[0, 2, 3]])


def test_an_unseen_expert_is_warned_of(
    case: tuple[str, Database], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name, database = case
    adapter = adapter_for(model_of(name))
    gradients = gradients_of(adapter, database)
    costs = sensitivities(gradients, "fisher", LEVELS, tmp_path)
    away = [i for i, matrix in enumerate(adapter.matrices) if matrix.expert == 3]
    assert costs[away].min() > 0
    assert "gradient tokens reach" in caplog.text and "raise sensitivity.tokens" in caplog.text
    policy = [1] * len(adapter.matrices)
    moves = corrected_costs(gradients, policy, LEVELS, 0.3, 0.5, tmp_path)
    assert np.isinf(moves[away][:, [0, 2]]).all() and not np.isinf(moves[0]).any()


def test_scalar_costs_count_the_tokens_of_an_expert(
    case: tuple[str, Database], tmp_path: Path
) -> None:
    name, database = case
    adapter = adapter_for(model_of(name))
    costs, _ = scalar_costs(gradients_of(adapter, database), LEVELS, tmp_path)
    told = by_autograd("scalar", model_of(name))
    for row, matrix in zip(costs, adapter.matrices, strict=True):
        if matrix.expert is None or matrix.expert == 3:
            continue
        x, g, routed = told[matrix.name]
        energy = float((x[routed] @ matrix.weight.double().T).square().sum()) / int(routed.sum())
        record = database.manifest["matrices"][matrix.name]["levels"]
        for cost, level in zip(row, LEVELS, strict=True):
            error = record[f"{level:.4f}"]["relative_error"] * energy / g.shape[1]
            expected = 0.5 * float(g.square().sum()) * error / SEGMENTS[:, 1:].numel()
            assert cost == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("name", ["qwen3_moe", "qwen3_vl_moe", "qwen3_5_moe", "mixtral", "olmoe"])
def test_one_by_one_is_transformers_eager_loop(name: str) -> None:
    """To the bit; an exception inside puts the module's own forward back."""

    class Seen:
        names: set[str] = set()

        def keep(self, matrix: Matrix, given: torch.Tensor) -> None:
            assert len(given)

        def ask(self, matrix: Matrix, output: torch.Tensor) -> None:
            assert output.shape[-1] == matrix.weight.shape[0]

        def pass_over(self, matrix: Matrix) -> None:
            self.names.add(matrix.name)

    model, _ = TINY[name].build()
    adapter = adapter_for(model)
    matrices = [matrix for matrix in adapter.matrices if matrix.expert is not None]
    module: Any = matrices[0].module
    own = [matrix for matrix in matrices if matrix.module is module]
    module.config._experts_implementation = "eager"
    hidden = torch.randn(9, 24)
    chosen = torch.tensor([[0, 1], [2, 0], [1, 2], [2, 1], [0, 2], [1, 0], [0, 1], [2, 1], [0, 1]])
    weights = torch.rand(9, 2)
    with torch.no_grad():
        expected = module(hidden, chosen, weights)
        with pytest.raises(KeyError), one_by_one(module, own, Seen()):
            assert torch.equal(module(hidden, chosen, weights), expected)
            raise KeyError
    assert Seen.names == {m.name for m in own if m.expert == 3}
    assert "forward" not in vars(module)
