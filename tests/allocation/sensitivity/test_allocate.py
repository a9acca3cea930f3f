"""The whole allocation on a tiny LLaVA: budget, gain, resumption, workers, too little data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efficientllava.allocation.context import Allocation, Context
from efficientllava.allocation.gradients.samples import split
from efficientllava.calibration.sample_losses import DenseReference, difference
from efficientllava.data.proxy import save_proxy
from efficientllava.database.offloaded import Offloaded
from efficientllava.errors import UserError
from efficientllava.models.checkpoint import load_model
from efficientllava.models.families import adapter_for
from efficientllava.offload.blocks_on_disk import blocks_on_disk
from efficientllava.parameters import Parameters, SensitivityParameters
from efficientllava.progress import Event, Progress, silent
from efficientllava.pruning.sequential import stitch_model
from efficientllava.registry import METHODS
from tests.conftest import random_llava, random_proxy

SETTINGS: dict[str, Any] = {
    "tokens": 128, "choice_tokens": 192, "pairs": 4, "choice_pairs": 6, "generations": 2,
}  # fmt: skip
PROJECTOR = {"projector_learning_rate": 3e-3, "projector_batch": 4}
METHOD = "efficientllava_plus"


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its proxy data, and a work folder with the databases alone."""
    folder = tmp_path_factory.mktemp("inputs")
    random_llava().save_pretrained(folder / "model")
    save_proxy(folder / "proxy", random_proxy(12, 24), {})
    context = context_in(folder, folder / "work")
    for by_importance in (False, True):
        context.database_folders(context.parameters.wide_levels(0.5), (), by_importance)
    return folder


def context_in(
    folder: Path, work: Path, progress: Progress = silent, ratio: float = 0.5, **changes: Any
) -> Context:
    given = {
        "sensitivity": SETTINGS | changes.pop("sensitivity", {}),
        "search": PROJECTOR | changes.pop("search", {}),
        **changes,
    }
    return Context(folder / "model", folder / "proxy", ratio, Parameters(**given), work, progress)


def allocated(inputs: Path, work: Path, method: str = METHOD, **changes: Any) -> Allocation:
    if not work.exists():
        shutil.copytree(inputs / "work", work)
    return METHODS[method].allocate(context_in(inputs, work, **changes))


def essence(allocation: Allocation) -> str:
    projector = {name: value.tolist() for name, value in allocation.projector.items()}
    told = (dict(allocation.policy), allocation.history, allocation.summary, allocation.gain)
    return json.dumps([*told, projector], sort_keys=True)


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Allocation:
    return allocated(inputs, tmp_path_factory.mktemp("whole") / "work")


def test_every_policy_has_exactly_the_zeros_of_uniform(whole: Allocation) -> None:
    matrices = adapter_for(random_llava()).matrices
    half = sum(matrix.size for matrix in matrices) / 2
    for row in whole.history:
        zeros = sum(level * m.size for level, m in zip(row["policy"], matrices, strict=True))
        assert zeros == pytest.approx(half, abs=1e-6)
    origins = [row["origin"] for row in whole.history]
    assert origins[0] == "uniform" and "fisher" in origins
    assert {level for row in whole.history for level in row["policy"]} <= set(whole.levels)
    assert min(whole.levels) == 0.2 and max(whole.levels) == 0.8 and len(whole.levels) == 13


def test_gain_is_the_paired_difference_of_stitched_models(whole: Allocation, inputs: Path) -> None:
    assert whole.gain is not None
    adapter = adapter_for(load_model(inputs / "model"))
    proxy = context_in(inputs, inputs / "work").proxy
    other = split(proxy, SensitivityParameters(**SETTINGS), "text_and_pairs").choice
    reference = DenseReference(adapter, other, "text_and_pairs")
    context = context_in(inputs, inputs / "work")
    database = context.database(whole.levels, by_importance=True)
    losses = []
    for policy in (dict(whole.policy), dict.fromkeys(whole.policy, 0.5)):
        stitch_model(adapter, database, policy)
        losses.append(reference(adapter.language_model))
    positions = int(losses[0].positions.sum())
    text = int(losses[0].positions[: len(other.segments)].sum())
    weights = np.ones(len(losses[0].positions))
    weights[len(other.segments) :] = (text + 16) / (positions - text + 16)
    apart = difference(*(loss.weighted(weights) for loss in losses))
    assert whole.gain["difference"] == pytest.approx(apart.mean, rel=1e-3) and apart.mean < 0
    assert whole.gain["error"] == pytest.approx(apart.error, rel=1e-3)
    assert whole.gain["positions"] == positions
    assert whole.summary["best_loss"] == min(row["loss"] for row in whole.history)


def test_costs_and_choice_share_no_sample() -> None:
    proxy = random_proxy(12, 24)
    found = split(proxy, SensitivityParameters(**SETTINGS), "text_and_pairs")
    assert found.gradients.segments.shape == (8, 16) and found.choice.segments.shape == (12, 16)
    both = torch.cat([found.gradients.segments, found.choice.segments])
    assert len(both.unique(dim=0)) == 20
    assert found.gradients.pairs is not None and found.choice.pairs is not None
    assert (len(found.gradients.pairs), len(found.choice.pairs)) == (4, 6)
    assert split(proxy, SensitivityParameters(**SETTINGS), "text").choice.pairs is None


def test_what_rows_count_is_measured_anew_when_its_samples_change(
    inputs: Path, tmp_path: Path
) -> None:
    shutil.copytree(inputs / "work", tmp_path / "work")
    context = context_in(inputs, tmp_path / "work")
    rows = context.row_importance()
    assert {name: len(each) for name, each in rows.items()} == {
        matrix.name: len(matrix.weight) for matrix in adapter_for(random_llava()).matrices
    }
    plain, weighted = context.database([0.5]), context.database([0.5], by_importance=True)
    name = next(iter(rows))
    zeros = [(each.solution(name, 0.5) == 0).sum() for each in (plain, weighted)]
    assert zeros[0] == zeros[1]
    assert not torch.equal(plain.solution(name, 0.5), weighted.solution(name, 0.5))
    other = context_in(inputs, tmp_path / "work", sensitivity={"seed": 1})
    assert other.database_key() == context.database_key()
    assert other.database_key(True) != context.database_key(True)
    assert not torch.equal(other.row_importance()[name], rows[name])


@pytest.mark.parametrize("moment", ["gradients", "policy", "correction", "generation", "projector"])
def test_killed_it_ends_with_the_same_bytes(
    moment: str, inputs: Path, whole: Allocation, tmp_path: Path
) -> None:
    seen: list[Event] = []

    def kill(event: Event) -> None:
        if event.name == moment:
            raise Killed

    with pytest.raises(Killed):
        allocated(inputs, tmp_path / "work", progress=kill)
    resumed = allocated(inputs, tmp_path / "work", progress=seen.append)
    assert essence(resumed) == essence(whole)
    assert any(event.name == moment for event in seen)


def test_workers_change_nothing(inputs: Path, whole: Allocation, tmp_path: Path) -> None:
    three = allocated(inputs, tmp_path / "work", machine={"workers": 3})
    assert essence(three) == essence(whole)


def test_streamed_it_is_the_same(
    inputs: Path, whole: Allocation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def streamed(model: Path, database: Any, *args: Any, **settings: Any) -> Iterator[Offloaded]:
        adapter = adapter_for(load_model(model))
        with blocks_on_disk(adapter, model, tmp_path / "b", torch.device("cpu")) as blocks:
            yield Offloaded(adapter, database, blocks, None)

    monkeypatch.setattr("efficientllava.allocation.sensitivity.allocate.offloaded", streamed)
    assert essence(allocated(inputs, tmp_path / "work")) == essence(whole)


def test_single_knapsacks_are_methods(inputs: Path, tmp_path: Path) -> None:
    fisher = allocated(inputs, tmp_path / "work", "sensitivity")
    compared = allocated(inputs, tmp_path / "work", "plus_without_fisher_rows")
    row = next(row for row in compared.history if row["origin"] == "fisher")
    assert list(fisher.policy.values()) == row["policy"]
    errors = allocated(inputs, tmp_path / "work", "output_error")
    assert errors.policy != fisher.policy
    assert errors.summary["mean_sparsity"] == pytest.approx(0.5)
    sloped = allocated(inputs, tmp_path / "work", "slope", allocation={"slope": 0.1})
    blocks = [sloped.policy[f"model.language_model.layers.{b}.self_attn.q_proj"] for b in range(3)]
    assert blocks == pytest.approx([0.4, 0.5, 0.6])


def test_the_projector_is_kept_only_where_held_out_pairs_gain(
    inputs: Path, whole: Allocation, tmp_path: Path
) -> None:
    original = random_llava().model.multi_modal_projector.state_dict()
    assert whole.summary["projector_rounds_kept"] > 0
    assert any(not torch.equal(whole.projector[n], original[n]) for n in original)
    still = allocated(inputs, tmp_path / "work", search={"evolve_projector": False})
    assert all(torch.equal(still.projector[n], original[n]) for n in original)
    assert still.policy == whole.policy


def test_few_tokens_are_warned_of_with_their_number(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    allocated(inputs, tmp_path / "work")
    assert "rests on 126 scored positions" in caplog.text
    # of the choice: 12 segments of 15 and the answers of 6 pairs
    assert "policies are compared on 189 scored positions" in caplog.text
    assert "the same tokens" not in caplog.text


def test_a_single_segment_is_warned_of_once(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "model").symlink_to(inputs / "model")
    save_proxy(tmp_path / "proxy", random_proxy(segments=1), {})
    METHODS[METHOD].allocate(context_in(tmp_path, tmp_path / "work"))
    assert caplog.text.count("costs and choice rest on the same tokens") == 1


def test_a_deadline_begins_no_step(inputs: Path, tmp_path: Path) -> None:
    begun: list[str] = []
    shutil.copytree(inputs / "work", tmp_path / "work")
    late = METHODS[METHOD].allocate(
        context_in(
            inputs,
            tmp_path / "work",
            lambda event: begun.append(event.name),
            search={"max_seconds": 1e-3},
        )
    )
    assert not {"correction", "generation", "projector"} & set(begun) and "policy" in begun
    assert {row["origin"] for row in late.history} <= {
        "uniform", "slope 0.05", "slope 0.1", "owl 0.04", "owl 0.08", "fisher",
    }  # fmt: skip


@pytest.mark.parametrize("sensitivity", [{"reach": 0.0}, {"step": 0.1, "reach": 0.0}])
def test_one_level_leaves_nothing_to_swap(
    inputs: Path, tmp_path: Path, sensitivity: dict[str, float]
) -> None:
    found = allocated(inputs, tmp_path / "work", sensitivity=sensitivity)
    assert set(found.policy.values()) == {0.5}


@pytest.mark.parametrize("band", [(-0.03, -0.02), (0.02, 0.03)])
def test_a_band_without_the_target_bounds_the_zeros(
    inputs: Path, tmp_path: Path, band: tuple[float, float]
) -> None:
    found = allocated(inputs, tmp_path / "work", "output_error", search={"band": band})
    assert 0.5 + band[0] <= found.summary["mean_sparsity"] <= 0.5 + band[1]


def test_levels_that_cannot_meet_the_budget(inputs: Path, tmp_path: Path) -> None:
    pruning = {"patterns": ["1:4", "2:4", "3:4"], "block_size": 4}
    mixed = allocated(inputs, tmp_path / "work", obs=pruning, ratio=0.5)
    assert set(mixed.policy.values()) <= {0.25, 0.5, 0.75}
    pruning = {"patterns": ["1:4", "3:4"], "block_size": 4}
    only = {"obs": pruning, "methods": [METHOD], "ratios": [0.2503], "ratio": 0.2503}
    with pytest.raises(UserError, match="has a mean ratio in"):
        allocated(inputs, tmp_path / "w2", search={"band": (0, 0)}, **only)
