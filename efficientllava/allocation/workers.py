"""Scoring candidates in other processes, on this machine or others, through any executor.

Every process holds the model, its proxy loss and the memory-mapped database, opened from files at
its first candidate. An executor is a `concurrent.futures.Executor`; where its processes run and
how they are kept alive is its own affair (a process pool, Dask's client).
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from efficientllava.allocation.evaluation import StitchedModel, stitched_models, swap_order
from efficientllava.calibration.proxy_loss import Fitness, ProxyLoss, Score
from efficientllava.data.proxy import load_proxy
from efficientllava.database.placed import Machine, placed
from efficientllava.errors import UserError
from efficientllava.files import load_tensors, save_tensors
from efficientllava.models.families import Adapter
from efficientllava.offload.devices import open_device

DEATHS = 3
"""How often in a row an executor may break without one candidate finished."""


@dataclass(frozen=True)
class Work:
    """What a process needs to score candidates: names of files and plain values.

    Attributes:
        model, proxy, database: folders that every process can read under these names.
        fitness, fitness_data, kl_tokens: of the proxy loss.
        threads: torch threads of one evaluation; results are the same only at the same number.
        device: "cpu", "cuda" (the process' own: see `take_device`) or "cuda:N".
        device_memory: GiB of it that all processes together may use; None for what is free.
        sharing: how many processes share a device.
    """

    model: str
    proxy: str
    database: str
    fitness: Fitness
    fitness_data: str
    kl_tokens: int | None
    threads: int
    device: str = "cpu"
    device_memory: float | None = None
    sharing: int = 1


@dataclass
class _Held:
    adapter: Adapter
    loss: ProxyLoss
    stitched: StitchedModel
    ends: ExitStack
    projector: str | None = None


_held: dict[Work, _Held] = {}
"""What this process has opened; one entry, for one search at a time."""

_device: list[str] = []
"""The device that this process has taken; none: the one its work names."""


def take_device(devices: SimpleQueue[str]) -> None:
    """Take the next device of a queue for this process: the initializer of a process pool."""
    _device[:] = [devices.get()]


def evaluate(
    work: Work,
    projector: str | None,
    policy: Sequence[float],
    share: float = 1.0,
    limit: float = inf,
) -> Score:
    """The score of one policy, in whatever process this runs.

    Args:
        projector: safetensors file of the projector as it has moved; None for the model's own.
        share: of the proxy's batches, the first ones.
        limit: scoring ends once the loss is known to exceed it.
    """
    held = _open(work)
    if held.projector != projector:
        if projector is None:
            _let_go()
            held = _open(work)
        else:
            held.adapter.projector.load_state_dict(load_tensors(Path(projector)))
            held.loss.projector_moved()
            held.projector = projector
    held.stitched.stitch(policy)
    return held.loss.score(held.adapter.language_model, share, limit)


def _open(work: Work) -> _Held:
    if work not in _held:
        _let_go()
        torch.set_num_threads(work.threads)
        device = open_device(_device[0] if _device else work.device)
        machine = Machine(device, work.device_memory, work.sharing)
        proxy = load_proxy(Path(work.proxy))
        ends = ExitStack()
        folder = Path(ends.enter_context(TemporaryDirectory(prefix="efficientllava-")))
        model = placed(
            Path(work.model), Path(work.database), proxy, machine, folder, 0, work.kl_tokens
        )
        with ends:
            found = ends.enter_context(model)
            adapter = found.adapter
            # the dense model's targets come first, before anything is stitched
            loss = ProxyLoss(adapter, proxy, work.fitness, work.fitness_data, work.kl_tokens)
            (stitched,) = stitched_models(adapter, found.database, 1, found.blocks)
            _held[work] = _Held(adapter, loss, stitched, ends.pop_all())
        atexit.register(_let_go)
    return _held[work]


def _let_go() -> None:
    for held in _held.values():
        held.ends.close()
    _held.clear()


class ProcessEvaluator:
    """Scores of policies by the processes of an executor; which one scores changes nothing.

    Args:
        make_executor: called again when the executor is broken (a process was killed).
        folder: where moved projectors are written for the processes to read.
        sizes: weights of every prunable matrix.
    """

    def __init__(
        self,
        work: Work,
        make_executor: Callable[[], Executor],
        folder: Path,
        sizes: Sequence[int],
    ) -> None:
        self._work, self._make_executor, self._sizes = work, make_executor, sizes
        self._folder, self._moves = Path(folder).resolve(), 0
        self._projector: str | None = None
        self._executor = make_executor()

    def projector_moved(self, state: Mapping[str, torch.Tensor]) -> None:
        """From now on candidates are scored with this projector."""
        self._moves += 1
        path = self._folder / f"workers-projector-{self._moves:03d}.safetensors"
        save_tensors(path, state)
        self._projector = str(path)

    def scores(
        self,
        policies: Sequence[Sequence[float]],
        share: float = 1.0,
        limits: Sequence[float] | None = None,
    ) -> Iterator[tuple[int, Score]]:
        """(index, score) of every policy, as they finish.

        Raises:
            UserError: processes die again and again before one candidate is scored.
        """
        left, deaths = list(swap_order(policies, self._sizes)), 0
        while left:
            finished = 0
            futures: dict[Future[Score], int] = {}
            try:
                futures = {
                    self._executor.submit(
                        evaluate,
                        self._work,
                        self._projector,
                        list(policies[index]),
                        share,
                        inf if limits is None else limits[index],
                    ): index
                    for index in left
                }
                for future in _as_finished(futures):
                    index, score = futures[future], future.result()
                    left.remove(index)
                    finished += 1
                    yield index, score
            except BrokenExecutor as error:
                deaths = 1 if finished else deaths + 1
                if deaths > DEATHS:
                    raise UserError(
                        f"worker processes died {deaths} times before a candidate was scored",
                        where="search.workers",
                        remedy="look for the kernel's out-of-memory killer; use fewer workers",
                    ) from error
                self._executor.shutdown(wait=False)
                self._executor = self._make_executor()
            finally:
                # when the search is interrupted, too
                for future in futures:
                    future.cancel()

    def close(self) -> None:
        """Let the processes go."""
        self._executor.shutdown()


def _as_finished(futures: Mapping[Future[Any], int]) -> Iterator[Future[Any]]:
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, return_when="FIRST_COMPLETED")
        yield from sorted(done, key=lambda future: futures[future])
