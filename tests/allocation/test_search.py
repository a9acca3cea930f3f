"""The whole search on a tiny LLaVA: result, budget, projector, resume, workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from efficientllava.allocation.search.algorithm import (
    Search,
    SearchGoal,
    SearchInputs,
    SearchResult,
)
from efficientllava.allocation.search.state import SearchState
from efficientllava.calibration.proxy_loss import ProxyLoss
from efficientllava.data.proxy import ProxyData
from efficientllava.database.build import build_database
from efficientllava.database.solutions import Database, open_database
from efficientllava.errors import UserError
from efficientllava.models.families import adapter_for
from efficientllava.parameters import (
    MachineParameters,
    ObsParameters,
    Parameters,
    SearchParameters,
)
from efficientllava.progress import Event
from efficientllava.pruning.sequential import stitch_model
from tests.conftest import random_llava, random_proxy

LEVELS = [0.4, 0.45, 0.5, 0.55, 0.6]
PROXY = random_proxy()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Database:
    folder = tmp_path_factory.mktemp("database")
    adapter = adapter_for(random_llava())
    build_database(adapter, PROXY, LEVELS, ObsParameters(), folder / "d", folder / "w", {})
    return open_database(folder / "d")


def search(
    database: Database,
    work: Path,
    proxy: ProxyData = PROXY,
    progress: Any = lambda event: None,
    upper_bound: bool = True,
    workers: int = 1,
    **changes: Any,
) -> SearchResult:
    settings = {"candidates": 6, "rounds": 4, "survivors": 2, "projector_steps": 3}
    settings |= {"projector_learning_rate": 1e-2, "projector_batch": 4} | changes
    return Search(
        SearchInputs(adapter_for(random_llava()), proxy, database),
        SearchGoal(LEVELS, 0.5, SearchParameters(**settings), upper_bound),
        MachineParameters(workers=workers),
        work,
        {},
        progress,
    ).run()


def essence(result: SearchResult) -> tuple[Any, ...]:
    projector = {name: tensor.tolist() for name, tensor in result.projector.items()}
    return result.policy, projector, result.history, result.rounds, result.summary


def test_never_worse_than_uniform_and_always_in_the_band(
    database: Database, tmp_path: Path
) -> None:
    result = search(database, tmp_path)
    summary = result.summary
    assert summary["best_risk"] < summary["uniform_risk_final_projector"]
    assert all(0.5 <= c.mean_sparsity <= 0.51 + 1e-9 for c in result.history)
    best = min(r["best_risk"] for r in result.rounds)
    assert result.rounds[-1]["best_risk"] == summary["best_risk"] >= best
    policies = [c.genes for c in result.history if c.origin in ("random", "crossover", "mutation")]
    assert len(set(policies)) == len(policies)


def test_recorded_loss_is_that_of_the_stitched_model(database: Database, tmp_path: Path) -> None:
    result = search(database, tmp_path, evolve_projector=False, eta=0.25)
    adapter = adapter_for(random_llava())
    loss = ProxyLoss(adapter, PROXY, "kl", "text_and_pairs")
    stitch_model(adapter, database, result.policy)
    best = result.summary["best_loss"]
    assert loss(adapter.language_model) == pytest.approx(best, rel=1e-5)
    assert result.summary["best_risk"] == pytest.approx(
        best + 0.25 * result.summary["best_complexity"]
    )


def test_projector_moves_only_when_held_out_pairs_gain(database: Database, tmp_path: Path) -> None:
    result = search(database, tmp_path)
    steps = [r for r in result.rounds if r["projector_loss_before"] is not None]
    assert len(steps) == 3
    for step in steps:
        gained = step["projector_loss_after"] < step["projector_loss_before"]
        assert step["projector_kept"] == gained
    assert result.summary["projector_rounds_kept"] == sum(s["projector_kept"] for s in steps) > 0
    original = random_llava().model.multi_modal_projector.state_dict()
    assert any(not torch.equal(result.projector[n], original[n]) for n in original)
    fixed = search(database, tmp_path / "b", evolve_projector=False)
    assert all(torch.equal(fixed.projector[n], original[n]) for n in original)
    assert fixed.summary["projector_rounds_kept"] == 0


def test_survivors_are_scored_again_when_the_projector_moved(
    database: Database, tmp_path: Path
) -> None:
    result = search(database, tmp_path)
    for record in result.rounds[1:]:
        again = [c for c in result.history if c.round == record["round"]]
        assert any(c.origin == "survivor" for c in again) == record["projector_kept"]
        # scores under an earlier projector are not compared with those under the present one
        present = [c for c in result.history if c.projector == again[0].projector]
        seen = [c.risk for c in present if c.round <= record["round"]]
        assert record["best_risk"] == min(seen)


@pytest.mark.parametrize("moment", ["candidate", "round_started", "round"])
def test_killed_search_ends_as_an_uninterrupted_one(
    database: Database, tmp_path: Path, moment: str
) -> None:
    class Killed(Exception):
        pass

    def killed(event: Event) -> None:
        number = event.values.get("round", event.done)
        if event.name == moment and number == 3:
            raise Killed

    with pytest.raises(Killed):
        search(database, tmp_path / "killed", progress=killed)
    started: list[int] = []

    def watch(event: Event) -> None:
        if event.name == "round_started":
            started.append(event.done)

    resumed = search(database, tmp_path / "killed", progress=watch)
    assert started == ([4] if moment == "round" else [3, 4])
    assert essence(resumed) == essence(search(database, tmp_path / "whole"))


def test_workers_change_nothing(database: Database, tmp_path: Path) -> None:
    one = search(database, tmp_path / "1", workers=1)
    three = search(database, tmp_path / "3", workers=3)
    assert essence(one) == essence(three)


def test_more_rounds_continue_a_finished_search(database: Database, tmp_path: Path) -> None:
    search(database, tmp_path, rounds=2)
    started: list[int] = []
    longer = search(
        database,
        tmp_path,
        rounds=3,
        progress=lambda e: started.append(e.done) if e.name == "round_started" else None,
    )
    assert started == [3]
    assert essence(longer) == essence(search(database, tmp_path / "fresh", rounds=3))


def test_seed_eta_and_weights_decide(database: Database, tmp_path: Path) -> None:
    base = search(database, tmp_path)
    assert essence(search(database, tmp_path, seed=1)) != essence(base)
    assert essence(search(database, tmp_path, eta=3.0)) != essence(base)
    equal = search(database, tmp_path, upper_bound=False)
    assert equal.rounds[1]["projector_loss_before"] != base.rounds[1]["projector_loss_before"]


def test_one_ratio_per_block(database: Database, tmp_path: Path) -> None:
    result = search(database, tmp_path, granularity="block", band=(-0.01, 0.02))
    by_block: dict[str, set[float]] = {}
    for name, level in result.policy.items():
        by_block.setdefault(name.split(".")[3], set()).add(level)
    assert all(len(levels) == 1 for levels in by_block.values())


def test_multi_step_selection_scores_fewer(database: Database, tmp_path: Path) -> None:
    full = search(database, tmp_path, evolve_projector=False)
    fewer = search(database, tmp_path, evolve_projector=False, multi_step=0.5, multi_step_keep=2)
    assert fewer.summary["candidates"] == 6 + 3 * 2 < full.summary["candidates"]
    assert fewer.summary["best_risk"] <= fewer.summary["uniform_risk"]


def test_patience_stops(database: Database, tmp_path: Path) -> None:
    result = search(database, tmp_path, mutation=0.0, survivors=1, rounds=9, patience=2)
    assert result.summary["rounds"] < 9


def test_patience_compares_risks_under_one_projector() -> None:
    def state(*rounds: tuple[float, bool]) -> SearchState:
        records = [{"best_risk": risk, "projector_kept": kept} for risk, kept in rounds]
        return SearchState(rounds=records)

    gains = (1.1, True), (1.05, False), (1.02, False)
    assert not state((1.0, False), *gains).has_settled(2)
    assert state((1.0, False), *gains, (1.02, False), (1.03, False)).has_settled(2)
    assert not state(*[(1.0, False)] * 9).has_settled(None)


def test_evolving_without_pairs_is_refused(database: Database, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gradient is exactly zero"):
        search(database, tmp_path, proxy=ProxyData(PROXY.segments, None))
    alone = ProxyData(PROXY.segments, None)
    assert search(database, tmp_path, proxy=alone, evolve_projector=False, fitness="nll")


def test_one_level_varies_nothing_and_the_summary_says_so(
    database: Database, tmp_path: Path
) -> None:
    varied = search(database, tmp_path / "varied", rounds=1)
    assert "varied" not in varied.summary
    fixed = Search(
        SearchInputs(adapter_for(random_llava()), PROXY, database),
        SearchGoal([0.5], 0.5, SearchParameters(candidates=4, survivors=2, rounds=2)),
        MachineParameters(workers=1),
        tmp_path / "fixed",
        {},
    ).run()
    assert set(fixed.policy.values()) == {0.5}
    assert {candidate.genes for candidate in fixed.history} == {(0,) * len(fixed.policy)}
    assert "obs.patterns" in fixed.summary["varied"]


@pytest.mark.parametrize(
    ("pruning", "levels"),
    [
        ({"pattern": "2:4"}, [0.5]),
        ({"patterns": ("3:4", "1:4")}, [0.25, 0.75]),
        ({"patterns": ("5:32", "27:32")}, [0.15625, 0.84375]),
        ({}, LEVELS),
    ],
)
def test_levels_are_those_of_the_patterns(pruning: dict[str, Any], levels: list[float]) -> None:
    parameters = Parameters(
        obs=ObsParameters(**pruning),
        methods=("efficientllava",),
        search=SearchParameters(offsets=(-0.1, -0.05, 0.0, 0.05, 0.1)),
    )
    assert parameters.levels(0.5) == levels
