"""Giving up hopeless candidates: the same search, fewer batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from math import inf
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientllava.allocation.early_stop import loss_limits
from efficientllava.allocation.evolution import Candidate, survivors
from efficientllava.allocation.search import Search, SearchResult
from efficientllava.allocation.workers import ProcessEvaluator, Work
from efficientllava.calibration.proxy_loss import (
    ROUNDING,
    Distribution,
    ProxyLoss,
    kl_divergence,
    negative_log_likelihood,
)
from efficientllava.calibration.structural_risk import structural_risk
from efficientllava.data import proxy as proxy_module
from efficientllava.data.proxy import save_proxy
from efficientllava.database.build import build_database, open_database
from efficientllava.models.families import adapter_for
from efficientllava.parameters import PruningParameters, SearchParameters
from efficientllava.report.plots import trajectory
from tests.conftest import random_llava, random_proxy

LEVELS = [0.3, 0.4, 0.5, 0.6, 0.7]
SEGMENTS, PAIRS = 20, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkpoint, proxy data in many batches and a database, on disk."""
    folder = tmp_path_factory.mktemp("early")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proxy_module, "TOKENS_PER_BATCH", 32)
        model, proxy = random_llava(), random_proxy(PAIRS, SEGMENTS)
        model.save_pretrained(folder / "model")
        save_proxy(folder / "proxy", proxy, {})
        target, work = folder / "database", folder / "w"
        build_database(adapter_for(model), proxy, LEVELS, PruningParameters(), target, work, {})
        yield folder
    torch.set_num_threads(threads)


def search(
    folder: Path,
    work: Path,
    make_executor: Callable[[], Executor] | None = None,
    **changes: Any,
) -> SearchResult:
    values = {"candidates": 8, "rounds": 5, "survivors": 2, "workers": 1, "projector_steps": 3}
    values |= {"projector_learning_rate": 1e-3, "projector_batch": 4, "mutation": 0.5} | changes
    parameters = SearchParameters(**values)
    adapter = adapter_for(random_llava())
    names = [str(folder / name) for name in ("model", "proxy", "database")]
    task = Work(*names, parameters.fitness, parameters.fitness_data, parameters.kl_tokens, 1)

    def elsewhere(where: Path) -> ProcessEvaluator:
        assert make_executor is not None
        return ProcessEvaluator(task, make_executor, where, adapter.sizes)

    database = open_database(folder / "database", LEVELS)
    proxy = random_proxy(PAIRS, SEGMENTS)
    return Search(
        adapter, proxy, database, LEVELS, 0.5, parameters, work, {},
        make_evaluator=None if make_executor is None else elsewhere,
    ).run()  # fmt: skip


def survivors_by_round(result: SearchResult, count: int) -> list[list[Any]]:
    """Those that a round leaves, under the projector it was scored with."""
    rounds = []
    for number in range(1, len(result.rounds) + 1):
        scored = [c for c in result.history if c.round == number]
        under = [
            c for c in result.history if c.round <= number and c.projector == scored[0].projector
        ]
        best = survivors({c.genes: c for c in under}.values(), count)
        rounds.append([(c.genes, c.loss, c.risk) for c in best])
    return rounds


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"evolve_projector": False, "eta": 0.0},
        {"evolve_projector": False, "fitness": "nll", "fitness_data": "text"},
        {"kl_tokens": 5, "complexity": "geometric_mean"},
        {"multi_step": 0.5, "multi_step_keep": 4},
    ],
)
def test_the_search_is_the_same(folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    whole = search(folder, tmp_path / "whole", **changes)
    given_up = search(folder, tmp_path / "early", early_stop=True, **changes)
    assert given_up.policy == whole.policy
    for name, tensor in whole.projector.items():
        assert torch.equal(tensor, given_up.projector[name])
    assert survivors_by_round(given_up, 2) == survivors_by_round(whole, 2)
    assert given_up.summary == whole.summary
    pairs = list(zip(whole.history, given_up.history, strict=True))
    for full, bound in pairs:
        assert (full.genes, full.origin, full.index) == (bound.genes, bound.origin, bound.index)
        if bound.stopped:
            assert bound.loss < full.loss and bound.risk < full.risk
            assert bound.round > 1 and bound.origin in ("crossover", "mutation")
        else:
            assert bound == full
    assert any(bound.stopped for _, bound in pairs) or changes.keys() & {"multi_step", "fitness"}
    assert all(c.scored == 1.0 for c in whole.history)


def test_workers_and_resuming_change_nothing(folder: Path, tmp_path: Path) -> None:
    one = search(folder, tmp_path / "1", early_stop=True)
    three = search(folder, tmp_path / "3", early_stop=True, workers=3)
    search(folder, tmp_path / "r", early_stop=True, rounds=3)
    resumed = search(folder, tmp_path / "r", early_stop=True)
    for other in (three, resumed):
        assert (other.history, other.rounds, other.policy) == (one.history, one.rounds, one.policy)


def small_batches() -> None:
    """As the fixture has it, in another process."""
    proxy_module.TOKENS_PER_BATCH = 32


@pytest.mark.slow
def test_processes_give_up_the_same(folder: Path, tmp_path: Path) -> None:
    def pool() -> Executor:
        return ProcessPoolExecutor(2, get_context("spawn"), small_batches)

    here = search(folder, tmp_path / "here", early_stop=True)
    there = search(folder, tmp_path / "there", pool, early_stop=True)
    assert any(c.stopped for c in here.history)
    assert (there.history, there.policy) == (here.history, here.policy)
    assert all(torch.equal(here.projector[name], there.projector[name]) for name in here.projector)


def test_a_bound_is_what_a_naive_sum_gives(folder: Path) -> None:
    adapter = adapter_for(random_llava())
    loss = ProxyLoss(adapter, random_proxy(PAIRS, SEGMENTS), "nll", "text_and_pairs")
    full = loss.score(adapter.language_model)
    assert full.scored == 1.0 and full.loss == loss(adapter.language_model)
    score = loss.score(adapter.language_model, limit=full.loss / 3)
    assert score.stopped and full.loss / 3 < score.loss < full.loss
    batches = round(score.scored * len([*loss.text, *loss.pairs]))
    # the pairs, of fewer tokens, come first
    losses, positions = [], []
    for batch in [*loss.pairs, *loss.text][:batches]:
        with torch.no_grad():
            hidden = adapter.language_model(**batch.inputs.arguments).last_hidden_state
            logits = loss.head(hidden[batch.positions]).double()
        losses.append(torch.nn.functional.cross_entropy(logits, batch.wanted, reduction="sum"))
        positions.append(len(batch.wanted))
    answers = sum(len(batch.wanted) for batch in loss.pairs)
    text = SEGMENTS * 15
    own = min(batches, len(loss.pairs))
    halves = [
        (float(sum(losses[:own])) - ROUNDING * (answers - sum(positions[:own]))) / answers,
        (float(sum(losses[own:])) - ROUNDING * (text - sum(positions[own:]))) / text,
    ]
    assert score.loss == pytest.approx(sum(halves) / 2, rel=1e-5)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6), st.sampled_from([2, 64, 32064]), st.floats(0.01, 60), st.floats(0, 0.1)
)
def test_no_position_falls_below_zero_by_more_than_the_rounding(
    seed: int, vocabulary: int, scale: float, apart: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(6, vocabulary, generator=generator) * scale
    pruned = dense + apart * torch.randn(6, vocabulary, generator=generator)
    told = dense.log_softmax(dim=1)
    for top in (None, 1, 16):
        assert kl_divergence(Distribution.of(told, top), pruned).min() > -ROUNDING / 4
    wanted = dense.argmax(dim=1)
    assert negative_log_likelihood(pruned.log_softmax(dim=1), wanted).min() > -ROUNDING / 4


@given(
    st.lists(st.floats(0, 50), min_size=3, max_size=6),
    st.floats(-3, 3),
    st.floats(0, 5),
    st.floats(1e-9, 1),
)
def test_what_exceeds_its_limit_exceeds_the_last_survivor(
    risks: list[float], complexity: float, eta: float, beyond: float
) -> None:
    archive = [
        Candidate(1, i, (i,), "random", 0.5, risk, 0.0, risk, 0) for i, risk in enumerate(risks)
    ]
    (limit,) = loss_limits(archive, 3, [complexity], eta)
    assert structural_risk(limit + beyond, complexity, eta) > sorted(risks)[2]
    assert structural_risk(limit - 1e-6, complexity, eta) < sorted(risks)[2]
    assert loss_limits(archive[:2], 3, [complexity], eta) == [inf]


def test_rows_and_plots_tell_bounds_from_losses(folder: Path, tmp_path: Path) -> None:
    result = search(folder, tmp_path / "early", early_stop=True)
    rows = [candidate.as_row() for candidate in result.history]
    given_up = [row for row in rows if row.get("stopped")]
    assert given_up and all(0 < row["scored"] < 1 for row in given_up)
    assert all("scored" not in row for row in rows if "stopped" not in row)
    assert [Candidate.from_row(row) for row in rows] == result.history
    for row in rows:
        row["policy"] = row.pop("genes")
    _, best, mean, _ = trajectory(rows)
    for number, record in enumerate(result.rounds):
        whole = [r["risk"] for r in rows if r["round"] == number + 1 and not r.get("stopped")]
        assert best["risk"][number] == record["best_risk"]
        assert record["stopped"] == record["evaluated"] - len(whole)
        if whole:
            assert mean["risk"][number] == pytest.approx(record["mean_risk"])
