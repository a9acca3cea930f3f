"""Costs from hooks, checkpoints and streams against autograd on the whole model, in float64."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from efficientllava.allocation.gradients.backward import _without_label
from efficientllava.allocation.gradients.row_importance import (
    TENSORS,
    measure_rows,
    measured_rows,
)
from efficientllava.allocation.sensitivity.costs import (
    Gradients,
    corrected_costs,
    fisher_costs,
    interpolated,
    scalar_costs,
)
from efficientllava.calibration.sample_losses import DenseReference
from efficientllava.data.proxy import ProxyData
from efficientllava.database.build import build_database
from efficientllava.database.solutions import Database, open_database
from efficientllava.errors import UserError
from efficientllava.models.checkpoint import load_model
from efficientllava.models.families import Adapter, adapter_for
from efficientllava.offload.blocks_on_disk import blocks_on_disk
from efficientllava.offload.devices import open_device
from efficientllava.parameters import ObsParameters
from efficientllava.progress import Event, silent
from efficientllava.pruning.sequential import stitch_model
from tests.conftest import random_llava, random_proxy
from tests.pretend_gpu import pretend_gpu

LEVELS = [0.3, 0.4, 0.5, 0.6, 0.7]
PROXY = random_proxy(6, 6)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Database:
    folder = tmp_path_factory.mktemp("database")
    adapter = adapter_for(random_llava())
    build_database(adapter, PROXY, LEVELS, ObsParameters(), folder / "d", folder / "w", {})
    return open_database(folder / "d")


def gradients_of(
    adapter: Adapter, database: Database, streamed: bool = False, proxy: ProxyData = PROXY
) -> Gradients:
    reference = DenseReference(adapter, proxy, "text_and_pairs")
    return Gradients(adapter, reference, database, streamed, 3, silent)


def labels_of(logits: torch.Tensor, uniforms: list[float]) -> torch.Tensor:
    """The token at which the distribution function first exceeds u, by a loop."""
    labels = []
    for row, u in zip(logits.softmax(-1).tolist(), uniforms, strict=True):
        reached, label = row[0], 0
        while reached <= u and label < len(row) - 1:
            label += 1
            reached += row[label]
        labels.append(label)
    return torch.tensor(labels)


def by_autograd(name: str, kl: bool, model: Any, dense: Any) -> dict[str, torch.Tensor]:
    """[tokens, out] gradients and [tokens, in] inputs of all matrices, in float64, both batches.

    Oracle: the whole model's logits, torch's own losses, no checkpoints.
    """
    adapter = adapter_for(model)
    kept: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def keep(key: str) -> Any:
        def hook(module: Any, args: Any, output: torch.Tensor) -> None:
            output.retain_grad()
            kept.setdefault(key, []).append((args[0], output))

        return hook

    for matrix in adapter.matrices:
        matrix.module.register_forward_hook(keep(matrix.name))
    pairs = PROXY.pairs
    assert pairs is not None
    text = torch.ones_like(PROXY.segments, dtype=torch.bool)
    text[:, -1] = False
    batches = [({"input_ids": PROXY.segments}, text), (pairs.inputs, pairs.answer_positions())]
    for index, (inputs, positions) in enumerate(batches):
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
        logits = model(**inputs, use_cache=False).logits[positions]
        if kl:
            with torch.no_grad():
                target = dense(**inputs, use_cache=False).logits[positions].log_softmax(-1)
            said = logits.log_softmax(-1)
            loss = functional.kl_div(said, target, reduction="sum", log_target=True)
        else:
            draw = random.Random(f"3/{name}/{index}")
            uniforms = [draw.random() for _ in range(int(positions.sum()))]
            loss = functional.cross_entropy(logits, labels_of(logits, uniforms), reduction="sum")
        loss.backward()
    return {
        key: [
            torch.cat([(g.flatten(0, 1)) for g in gs])
            for gs in zip(*((x.detach(), y.grad) for x, y in calls), strict=True)
        ]
        for key, calls in kept.items()
    }  # type: ignore[return-value]


def scored() -> tuple[int, int]:
    assert PROXY.pairs is not None
    return PROXY.segments[:, 1:].numel(), int(PROXY.pairs.answer_positions().sum())


WEIGHT = (scored()[0] + 16) / (scored()[1] + 16)
"""What an answer's position counts."""


def positions() -> float:
    text, answers = scored()
    return text + WEIGHT * answers


def weighted(values: torch.Tensor) -> torch.Tensor:
    """[tokens, ...], those of the text first."""
    text = PROXY.segments.numel()
    return torch.cat([values[:text], WEIGHT * values[text:]])


def test_fisher_costs_are_autograds(database: Database, tmp_path: Path) -> None:
    adapter = adapter_for(random_llava())
    costs, _ = fisher_costs(gradients_of(adapter, database), LEVELS, tmp_path)
    told = by_autograd("fisher", False, random_llava().double(), None)
    for row, matrix in zip(costs, adapter.matrices, strict=True):
        x, g = told[matrix.name]
        for cost, level in zip(row, LEVELS, strict=True):
            change = (database.solution(matrix.name, level) - matrix.weight).double()
            moved = ((x @ change.T) * g).sum(-1)
            expected = float(weighted(moved.square()).sum()) / 2 / positions()
            assert cost == pytest.approx(expected, rel=2e-3)


def test_corrections_are_autograds_at_the_stitched_policy(
    database: Database, tmp_path: Path
) -> None:
    dense = adapter_for(random_llava())
    policy = [index % 3 + 1 for index in range(len(dense.matrices))]
    named = {m.name: LEVELS[level] for m, level in zip(dense.matrices, policy, strict=True)}
    gradients = gradients_of(dense, database)
    stitch_model(dense, database, named)
    costs = corrected_costs(gradients, policy, LEVELS, 0.1, 0.75, tmp_path)
    stitched = random_llava()
    stitch_model(adapter_for(stitched), database, named)
    first = by_autograd("kl", True, stitched.double(), random_llava().double())
    again = random_llava()
    stitch_model(adapter_for(again), database, named)
    second = by_autograd("drawn", False, again.double(), None)
    for row, matrix, now in zip(costs, dense.matrices, policy, strict=True):
        for index, level in enumerate(LEVELS):
            if abs(level - LEVELS[now]) > 0.1 + 1e-9:
                assert row[index] == np.inf
                continue
            change = database.solution(matrix.name, level) - database.solution(
                matrix.name, LEVELS[now]
            )
            (x, g), (x2, g2) = first[matrix.name], second[matrix.name]
            slope = float(weighted((x @ change.double().T) * g).sum())
            bend = float(weighted(((x2 @ change.double().T) * g2).sum(-1).square()).sum())
            expected = (slope + 0.75 * bend) / positions()
            assert row[index] == pytest.approx(expected, rel=3e-3, abs=2e-5)


def test_first_order_is_the_kl_s_finite_difference(database: Database, tmp_path: Path) -> None:
    """A small step along W_l - W_now moves the KL divergence as the gradient says."""
    adapter = adapter_for(random_llava())
    policy = [2] * len(adapter.matrices)
    gradients = gradients_of(adapter, database)
    stitch_model(adapter, database, {m.name: 0.5 for m in adapter.matrices})
    costs = corrected_costs(gradients, policy, LEVELS, 0.1, 0.0, tmp_path)
    adapter.model.double()
    for index in (0, 8, 20):
        matrix = adapter.matrices[index]
        now = matrix.weight.clone()
        step = 1e-3 * (database.solution(matrix.name, 0.6).double() - now)
        kls = []
        for sign in (1, -1):
            matrix.module.weight.data = now + sign * step
            kls.append(kl_by_logits(adapter))
        matrix.module.weight.data = now
        assert (kls[0] - kls[1]) / 2e-3 == pytest.approx(costs[index, 3], rel=2e-2, abs=1e-5)


@torch.no_grad()
def kl_by_logits(adapter: Adapter) -> float:
    dense, kls = random_llava().double(), []
    pairs = PROXY.pairs
    assert pairs is not None
    text = torch.ones_like(PROXY.segments, dtype=torch.bool)
    text[:, -1] = False
    for inputs, at in (
        ({"input_ids": PROXY.segments}, text),
        (pairs.inputs, pairs.answer_positions()),
    ):
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
        said = adapter.model(**inputs).logits[at].log_softmax(-1)
        target = dense(**inputs).logits[at].log_softmax(-1)
        kls.append(float(functional.kl_div(said, target, reduction="sum", log_target=True)))
    return (kls[0] + WEIGHT * kls[1]) / positions()


def test_scalar_costs_need_one_number_of_gradients(database: Database, tmp_path: Path) -> None:
    adapter = adapter_for(random_llava())
    costs, _ = scalar_costs(gradients_of(adapter, database), LEVELS, tmp_path)
    told = by_autograd("scalar", False, random_llava().double(), None)
    assert PROXY.pairs is not None
    tokens = PROXY.segments.numel() + WEIGHT * int(PROXY.pairs.inputs["attention_mask"].sum())
    for row, matrix in zip(costs, adapter.matrices, strict=True):
        x, g = told[matrix.name]
        record = database.manifest["matrices"][matrix.name]["levels"]
        energy = float(weighted((x @ matrix.weight.double().T).square()).sum()) / tokens
        for cost, level in zip(row, LEVELS, strict=True):
            error = record[f"{level:.4f}"]["relative_error"] * energy / g.shape[1]
            expected = 0.5 * float(weighted(g.square()).sum()) * error / positions()
            assert cost == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("kind", ["fisher", "corrected", "rows"])
def test_streamed_and_on_a_pretended_gpu_they_are_the_same(
    kind: str, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_llava().save_pretrained(tmp_path / "model")
    policy = [1] * 21

    def costs(gradients: Gradients, folder: str) -> np.ndarray:
        if kind == "fisher":
            return fisher_costs(gradients, LEVELS, tmp_path / folder)[0]
        if kind == "rows":
            measure_rows(gradients.adapter, PROXY, 3, tmp_path / folder, gradients.streamed)
            return np.concatenate([rows.numpy() for rows in rows_in(tmp_path / folder).values()])
        return corrected_costs(gradients, policy, LEVELS, 0.1, 0.5, tmp_path / folder)

    plain = costs(gradients_of(adapter_for(load_model(tmp_path / "model")), database), "plain")
    adapter = adapter_for(load_model(tmp_path / "model"))
    with blocks_on_disk(adapter, tmp_path / "model", tmp_path / "b", torch.device("cpu")):
        streamed = costs(gradients_of(adapter, database, True), "streamed")
    np.testing.assert_array_equal(plain, streamed)
    with pretend_gpu(monkeypatch):
        device = open_device("cuda")
        adapter = adapter_for(load_model(tmp_path / "model"))
        with blocks_on_disk(adapter, tmp_path / "model", tmp_path / "g", device):
            there = costs(gradients_of(adapter, database, True), "there")
    np.testing.assert_allclose(plain, there, rtol=1e-5)


def rows_in(folder: Path) -> dict[str, torch.Tensor]:
    found = measured_rows(folder)
    assert found is not None
    return dict(found)


def test_row_importance_is_autograds(tmp_path: Path) -> None:
    measure_rows(adapter_for(random_llava()), PROXY, 3, tmp_path)
    told, found = by_autograd("rows", False, random_llava().double(), None), rows_in(tmp_path)
    assert found.keys() == told.keys()
    for name, (_, g) in told.items():
        expected = weighted(g.square()).sum(0) / positions()
        torch.testing.assert_close(found[name], expected, rtol=2e-3, atol=1e-12)


def test_row_importance_resumes_and_is_checked(tmp_path: Path) -> None:
    adapter = adapter_for(random_llava())
    measure_rows(adapter, PROXY, 3, tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(event: Event) -> None:
        raise Killed

    with pytest.raises(Killed):
        measure_rows(adapter, PROXY, 3, tmp_path / "killed", progress=kill)
    assert measured_rows(tmp_path / "killed") is None
    (first,) = (tmp_path / "killed" / "batches").iterdir()
    kept = first.stat().st_mtime_ns
    with pytest.raises(Killed):
        measure_rows(adapter, PROXY, 3, tmp_path / "killed", progress=kill)
    assert first.stat().st_mtime_ns == kept
    measure_rows(adapter, PROXY, 3, tmp_path / "killed")
    files = [tmp_path / folder / TENSORS for folder in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    content = bytearray(files[0].read_bytes())
    content[-1] ^= 1
    files[0].write_bytes(content)
    with pytest.raises(UserError, match="is not the file that was written"):
        measured_rows(tmp_path / "whole")


def test_sixteen_bits_accumulate_in_thirty_two(database: Database, tmp_path: Path) -> None:
    full = gradients_of(adapter_for(random_llava()), database)
    half = gradients_of(adapter_for(random_llava().to(torch.bfloat16)), database)
    costs = [
        fisher_costs(each, LEVELS, tmp_path / str(n))[0] for n, each in enumerate((full, half))
    ]
    assert np.corrcoef(np.log(costs[0]).ravel(), np.log(costs[1]).ravel())[0, 1] > 0.98


def test_an_overflow_names_its_matrix(database: Database, tmp_path: Path) -> None:
    adapter = adapter_for(random_llava())
    gradients = gradients_of(adapter, database)
    adapter.matrices[15].weight[0, 0] = float("inf")
    with pytest.raises(UserError, match="NaN or inf") as error:
        fisher_costs(gradients, LEVELS, tmp_path)
    assert error.value.where.startswith("model.language_model.layers.2")


def test_batches_that_are_there_are_not_computed_again(database: Database, tmp_path: Path) -> None:
    adapter = adapter_for(random_llava())
    gradients = gradients_of(adapter, database)
    whole, _ = fisher_costs(gradients, LEVELS, tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(files) == 2
    (tmp_path / "fisher-001.json").unlink()
    kept = (tmp_path / "fisher-000.json").stat().st_mtime_ns
    np.testing.assert_array_equal(whole, fisher_costs(gradients, LEVELS, tmp_path)[0])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert (tmp_path / "fisher-000.json").stat().st_mtime_ns == kept


def test_labels_are_drawn_with_the_model_s_probabilities() -> None:
    probabilities = torch.tensor([[0.1, 0.0, 0.6, 0.3]]).expand(4000, 4)
    uniforms = torch.linspace(0, 1, 4001)[:-1]
    drawn = (_without_label(probabilities, uniforms) - probabilities) < -0.5
    assert drawn.sum(1).eq(1).all()
    assert drawn.float().mean(0).tolist() == pytest.approx([0.1, 0.0, 0.6, 0.3], abs=1e-3)


def test_between_measured_levels_the_logarithm_is_linear() -> None:
    costs = interpolated(np.array([[1.0, 100.0]]), [0.2, 0.6], [0.0, 0.2, 0.4, 0.6])
    assert costs.tolist() == [[0.0, pytest.approx(1.0), pytest.approx(10.0), pytest.approx(100.0)]]
