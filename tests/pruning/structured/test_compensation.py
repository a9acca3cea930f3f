"""Compensation of removed blocks: closed forms, and sums gathered by a loop over tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from efficientllava.data.proxy import ProxyData
from efficientllava.errors import UserError
from efficientllava.models.families import Adapter
from efficientllava.pruning.structured import compensation
from efficientllava.pruning.structured.block_removal import image_text_inputs
from efficientllava.pruning.structured.compensation import Grams, compensate, down_projection
from tests.conftest import random_proxy

D, M, N = 5, 7, 60


def tensors(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W [d, m], H [n, m], D [n, d] in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return normal(D, M), normal(N, M), normal(N, D)


def grams_of(inputs: torch.Tensor, change: torch.Tensor) -> Grams:
    grams = Grams(torch.zeros(M, M).double(), torch.zeros(M, D).double())
    for part in (slice(0, 13), slice(13, N)):
        grams.add(inputs[part], change[part])
    return grams


def stacked_least_squares(a: torch.Tensor, b: torch.Tensor, penalty: float) -> torch.Tensor:
    """Ridge as ordinary least squares with sqrt(lambda) I below the data, lambda in units of the
    mean diagonal of the Gram."""
    weight = penalty * float((a.T @ a).diagonal().mean())
    below = weight**0.5 * torch.eye(a.shape[1], dtype=a.dtype)
    zeros = torch.zeros(a.shape[1], b.shape[1], dtype=a.dtype)
    return torch.linalg.lstsq(torch.cat([a, below]), torch.cat([b, zeros])).solution


@pytest.mark.parametrize("penalty", [1e-6, 1e-2, 1.0, 100.0])
def test_ridge_equals_stacked_least_squares(penalty: float) -> None:
    weight, inputs, change = tensors()
    found = compensation.ridge(weight, grams_of(inputs, change), penalty)
    torch.testing.assert_close(found, stacked_least_squares(inputs, change, penalty).T)


@pytest.mark.parametrize("penalty", [1e-6, 1e-2, 1.0, 100.0])
def test_replaceme_equals_stacked_least_squares(penalty: float) -> None:
    weight, inputs, change = tensors()
    outputs = inputs @ weight.T
    map_ = stacked_least_squares(outputs, outputs + change, penalty)
    found = compensation.replaceme(weight, grams_of(inputs, change), penalty)
    # folded: the new matrix gives what the map makes of the old one's outputs
    torch.testing.assert_close(inputs @ (weight + found).T, outputs @ map_)


def test_scp_projects_on_the_leading_singular_vectors() -> None:
    """W' = (I + V_k V_k^T) W with the SVD of the mean differences themselves."""
    weight, _, means = tensors()
    vectors = torch.linalg.svd(means, full_matrices=False).Vh[:2]
    expected = weight.clone()
    for vector in vectors:
        expected += torch.outer(vector, vector @ weight)
    found = compensation.scp(weight, means.T @ means, 2)
    torch.testing.assert_close(weight + found, expected)
    everything = compensation.scp(weight, means.T @ means, D)
    torch.testing.assert_close(everything, weight, msg="all vectors double W")


def test_an_exact_update_is_found_and_its_error_is_zero() -> None:
    weight, inputs, _ = tensors()
    update = tensors(seed=1)[0]
    grams = grams_of(inputs, inputs @ update.T)
    torch.testing.assert_close(compensation.ridge(weight, grams, 1e-12), update)
    assert abs(grams.error(update)) < 1e-9 * grams.energy


def test_the_error_equals_a_loop_over_tokens() -> None:
    update, inputs, change = tensors()
    expected = sum(
        float((d - update @ h).square().sum()) for h, d in zip(inputs, change, strict=True)
    )
    assert grams_of(inputs, change).error(update) == pytest.approx(expected)


def test_noise_is_not_compensated() -> None:
    """What does not depend on the inputs gets the highest penalty, or none at all."""
    weight, inputs, change = tensors()
    fitted, held_out = grams_of(inputs[:10], change[:10]), grams_of(inputs[10:], change[10:])
    chosen = compensation.choose_penalty("ridge", weight, fitted, held_out)
    assert chosen is None or chosen >= 1.0


@torch.no_grad()
def gathered(
    adapter: Adapter, proxy: ProxyData, start: int, end: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """H and D of every sample, token by token, on the whole model; without BOS and padding."""
    model: Any = adapter.model
    assert proxy.pairs is not None
    streams: dict[int, torch.Tensor] = {}
    inner: list[torch.Tensor] = []
    handles = [
        adapter.blocks[index].register_forward_pre_hook(
            lambda _m, args, at=index: streams.update({at: args[0]})
        )
        for index in (start, end)
    ]
    down = adapter.blocks[start - 1].mlp.down_proj  # type: ignore[union-attr]
    handles.append(down.register_forward_pre_hook(lambda _m, args: inner.append(args[0])))  # type: ignore[operator,union-attr]
    model(**proxy.pairs.inputs, use_cache=False)
    for handle in handles:
        handle.remove()
    inputs, changes = [], []
    for sample, row in enumerate(proxy.pairs.inputs["attention_mask"].tolist()):
        places = [place for place, kept in enumerate(row) if kept][1:]
        inputs.append(torch.stack([inner[0][sample, place].double() for place in places]))
        changes.append(
            torch.stack(
                [(streams[end] - streams[start])[sample, place].double() for place in places]
            )
        )
    return inputs, changes


@pytest.mark.parametrize("kind", ["scp", "replaceme", "ridge"])
def test_a_run_is_folded_into_the_block_before_it(
    kind: str, adapter: Adapter, proxy: ProxyData
) -> None:
    inputs, changes = gathered(adapter, proxy, 1, 2)
    down = adapter.blocks[0].mlp.down_proj  # type: ignore[union-attr]
    others = {m.name: m.weight.clone() for m in adapter.matrices if m.module is not down}
    dense = down.weight.detach().double().clone()  # type: ignore[union-attr,operator]
    batches = image_text_inputs(adapter, proxy, "text_and_pairs")
    (record,) = compensate(adapter, batches, [(1, 2)], kind, 3)
    assert record["run"] == [1, 2] and record["folded_into"] == 0 and record["kind"] == kind
    for matrix in adapter.matrices:
        if matrix.name in others:
            assert torch.equal(matrix.weight, others[matrix.name]), "only down_proj changes"

    h, d = torch.cat(inputs), torch.cat(changes)
    fit = [index for index in range(len(inputs)) if index % 5 != 1]
    held = [index for index in range(len(inputs)) if index % 5 == 1]
    h_fit, d_fit = torch.cat([inputs[i] for i in fit]), torch.cat([changes[i] for i in fit])
    h_held, d_held = torch.cat([inputs[i] for i in held]), torch.cat([changes[i] for i in held])

    def update(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        penalty = record["penalty"]
        if kind == "scp":
            means = torch.stack([change.mean(0) for change in changes])
            v = torch.linalg.svd(means, full_matrices=False).Vh[:3]
            return v.T @ v @ dense
        if penalty is None:
            return torch.zeros_like(dense)
        if kind == "ridge":
            return stacked_least_squares(a, b, penalty).T
        y = a @ dense.T
        return stacked_least_squares(y, y + b, penalty).T @ dense - dense

    found = down.weight.detach().double() - dense  # type: ignore[union-attr,operator]
    torch.testing.assert_close(found, update(h, d), rtol=1e-3, atol=1e-4)
    missed = (d_held - h_held @ update(h_fit, d_fit).T).square().sum() / d_held.square().sum()
    assert record["held_out_error"] == pytest.approx(float(missed), rel=1e-4)
    if kind != "scp":
        assert record["held_out_error"] <= 1.0, "worse than plain removal"


def test_none_changes_nothing(adapter: Adapter, proxy: ProxyData) -> None:
    before = [matrix.weight.clone() for matrix in adapter.matrices]
    batches = image_text_inputs(adapter, proxy, "text_and_pairs")
    (record,) = compensate(adapter, batches, [(1, 2)], "none", 3)
    assert record == {"run": [1, 2], "folded_into": 0, "kind": "none", "penalty": None}
    same = zip(adapter.matrices, before, strict=True)
    assert all(torch.equal(matrix.weight, weight) for matrix, weight in same)


def test_one_sample_cannot_choose_a_penalty(adapter: Adapter) -> None:
    batches = image_text_inputs(adapter, random_proxy(pairs=1), "text_and_pairs")
    with pytest.raises(UserError, match="one calibration sample: none can be held out"):
        compensate(adapter, batches, [(1, 2)], "ridge", 3)


def test_a_norm_after_the_down_projection_is_refused(adapter: Adapter) -> None:
    """Gemma 2's blocks: what is folded in would go through the norm."""
    adapter.blocks[0].post_feedforward_layernorm = nn.Identity()
    with pytest.raises(UserError, match="norm after its down projection"):
        down_projection(adapter, 0)
