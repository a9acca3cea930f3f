"""Candidates scored by other processes: the same bytes, also when one is killed in the middle."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from efficientllava.allocation.scoring.evaluation import swap_order
from efficientllava.allocation.scoring.executors import dask_executor
from efficientllava.allocation.scoring.workers import ProcessEvaluator, Work
from efficientllava.allocation.search.algorithm import (
    Search,
    SearchGoal,
    SearchInputs,
    SearchResult,
)
from efficientllava.data.proxy import save_proxy
from efficientllava.database.build import build_database
from efficientllava.database.solutions import Database, open_database
from efficientllava.errors import UserError
from efficientllava.models.families import adapter_for
from efficientllava.parameters import MachineParameters, ObsParameters, SearchParameters
from efficientllava.progress import Event
from tests.conftest import random_llava, random_proxy

LEVELS = [0.4, 0.5, 0.6]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkpoint, its proxy data and its database (compact), on disk."""
    folder = tmp_path_factory.mktemp("workers")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model, proxy = random_llava(), random_proxy()
    model.save_pretrained(folder / "model")
    save_proxy(folder / "proxy", proxy, {})
    parameters = ObsParameters(storage="compact")
    build_database(
        adapter_for(model), proxy, LEVELS, parameters, folder / "database", folder / "w", {}
    )
    yield folder
    torch.set_num_threads(threads)


def search(
    folder: Path,
    work: Path,
    make_executor: Callable[[], Executor] | None,
    progress: Callable[[Event], None] = lambda event: None,
) -> SearchResult:
    parameters = SearchParameters(
        candidates=6, rounds=3, survivors=2, projector_steps=3, projector_batch=4,
        projector_learning_rate=3e-2, multi_step=0.5, multi_step_keep=3,
    )  # fmt: skip
    adapter = adapter_for(random_llava())
    model, proxy, database = (str(folder / name) for name in ("model", "proxy", "database"))
    task = Work(model, proxy, (database,), parameters.fitness, parameters.fitness_data, None, 1)

    def elsewhere(where: Path) -> ProcessEvaluator:
        assert make_executor is not None
        return ProcessEvaluator(task, make_executor, where, adapter.sizes)

    database: Database = open_database(folder / "database", LEVELS, check=True)
    return Search(
        SearchInputs(adapter, random_proxy(), database),
        SearchGoal(LEVELS, 0.5, parameters),
        MachineParameters(workers=1),
        work,
        {},
        progress,
        None if make_executor is None else elsewhere,
    ).run()


def essence(result: SearchResult) -> tuple[Any, ...]:
    projector = {name: tensor.tolist() for name, tensor in result.projector.items()}
    return result.policy, projector, result.history, result.rounds, result.summary


def pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(2, mp_context=get_context("spawn"))


@pytest.mark.slow
def test_two_processes_one_of_them_killed_change_nothing(folder: Path, tmp_path: Path) -> None:
    alone = search(folder, tmp_path / "alone", None)
    made: list[ProcessPoolExecutor] = []

    def make() -> Executor:
        made.append(pool())
        return made[-1]

    def kill(event: Event) -> None:
        if event.name == "candidate" and event.values["round"] == 2 and len(made) == 1:
            os.kill(next(iter(made[0]._processes)), signal.SIGKILL)

    killed = search(folder, tmp_path / "killed", make, kill)
    assert len(made) == 2
    assert essence(killed) == essence(alone)
    assert alone.summary["projector_rounds_kept"] > 0  # it was sent to the processes


@pytest.mark.slow
def test_dask_survives_a_killed_worker_and_changes_nothing(folder: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    machine = MachineParameters(workers=2, executor="dask")
    alone = search(folder, tmp_path / "alone", None)
    killed: list[int] = []

    def kill(event: Event) -> None:
        if event.name == "candidate" and event.values["round"] == 2 and not killed:
            client = distributed.get_client()
            processes = list(client.run(os.getpid).values())
            assert len(set(processes)) == 2
            killed.append(processes[0])
            os.kill(processes[0], signal.SIGKILL)

    shared = search(folder, tmp_path / "dask", lambda: dask_executor(machine), kill)
    assert killed
    assert essence(shared) == essence(alone)
    assert not active_children()


class Dying(Executor):
    """Breaks at every candidate, as a pool does whose processes are killed for memory."""

    def submit(self, function: Any, /, *arguments: Any, **keywords: Any) -> Future[Any]:
        """A future that has failed."""
        future: Future[Any] = Future()
        future.set_exception(BrokenExecutor())
        return future


def test_processes_that_always_die_are_told(tmp_path: Path) -> None:
    work = Work("m", "p", ("d",), "kl", "text", None, 1)
    evaluator = ProcessEvaluator(work, Dying, tmp_path, [1, 1])
    with pytest.raises(UserError, match="died 4 times"):
        list(evaluator.losses([[0.4, 0.5]]))


def test_nearest_policy_is_next() -> None:
    policies = [[0.4, 0.4], [0.6, 0.6], [0.4, 0.6], [0.4, 0.4]]
    assert swap_order(policies, [10, 1]) == [0, 3, 2, 1]
    assert swap_order(policies, [1, 10]) == [0, 3, 2, 1]
    assert swap_order([], []) == []
