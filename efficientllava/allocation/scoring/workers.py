"""Scoring candidates in other processes, on this machine or others, through any executor.

Every process opens the model, its proxy loss and the memory-mapped database from files at its
first candidate. An executor is a `concurrent.futures.Executor`; where its processes run and
how they are kept alive is its own affair (a process pool, Dask's client).
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from efficientllava.allocation.scoring.evaluation import StitchedModel, stitched_models, swap_order
from efficientllava.calibration.proxy_loss import Fitness, ProxyLoss
from efficientllava.data.proxy import load_proxy
from efficientllava.database.offloaded import Machine, offloaded
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
        model, proxy: folders that every process can read under these names.
        database: its folders, likewise.
        fitness, fitness_data, kl_tokens: of the proxy loss.
        threads: torch threads of one evaluation; results are the same only at the same number.
        device: "cpu", "cuda" (the process' own: see `take_device`) or "cuda:N".
        device_memory: GiB of it that all processes together may use; None for what is free.
        sharing: how many processes share a device.
    """

    model: str
    proxy: str
    database: tuple[str, ...]
    fitness: Fitness
    fitness_data: str
    kl_tokens: int | None
    threads: int
    device: str = "cpu"
    device_memory: float | None = None
    sharing: int = 1


@dataclass
class _Opened:
    adapter: Adapter
    loss: ProxyLoss
    stitched: StitchedModel
    resources: ExitStack
    projector: str | None = None


_opened: dict[Work, _Opened] = {}
"""What this process has opened; one entry, for one search at a time."""

_device: list[str] = []
"""The device that this process has taken; none: the one its work names."""


def take_device(devices: SimpleQueue[str]) -> None:
    """Take the next device of a queue for this process: the initializer of a process pool."""
    _device[:] = [devices.get()]


def evaluate(
    work: Work, projector: str | None, policy: Sequence[float], share: float = 1.0
) -> float:
    """The proxy loss of one policy, in whatever process this runs.

    Args:
        projector: safetensors file of the projector as it has moved; None for the model's own.
        share: of the proxy's batches, the first ones.
    """
    opened = _open(work)
    if opened.projector != projector:
        if projector is None:
            _close_all()
            opened = _open(work)
        else:
            opened.adapter.load_projector(load_tensors(Path(projector)))
            opened.loss.projector_moved()
            opened.projector = projector
    opened.stitched.stitch(policy)
    return opened.loss(opened.adapter.language_model, share)


def _open(work: Work) -> _Opened:
    if work not in _opened:
        _close_all()
        torch.set_num_threads(work.threads)
        device = open_device(_device[0] if _device else work.device)
        machine = Machine(device, work.device_memory, work.sharing)
        proxy = load_proxy(Path(work.proxy))
        resources = ExitStack()
        folder = Path(resources.enter_context(TemporaryDirectory(prefix="efficientllava-")))
        database = [Path(part) for part in work.database]
        model = offloaded(Path(work.model), database, proxy, machine, folder, 0, work.kl_tokens)
        with resources:
            opened = resources.enter_context(model)
            adapter = opened.adapter
            # the dense model's targets come first, before anything is stitched
            loss = ProxyLoss(adapter, proxy, work.fitness, work.fitness_data, work.kl_tokens)
            (stitched,) = stitched_models(adapter, opened.database, 1, opened.blocks)
            _opened[work] = _Opened(adapter, loss, stitched, resources.pop_all())
        atexit.register(_close_all)
    return _opened[work]


def _close_all() -> None:
    for opened in _opened.values():
        opened.resources.close()
    _opened.clear()


class ProcessEvaluator:
    """Losses of policies by the processes of an executor; which one scores changes nothing.

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

    def losses(
        self, policies: Sequence[Sequence[float]], share: float = 1.0
    ) -> Iterator[tuple[int, float]]:
        """(index, proxy loss) of every policy, as they finish.

        Raises:
            UserError: processes die again and again before one candidate is scored.
        """
        left, deaths = list(swap_order(policies, self._sizes)), 0
        while left:
            finished = 0
            futures: dict[Future[float], int] = {}
            try:
                futures = {
                    self._executor.submit(
                        evaluate,
                        self._work,
                        self._projector,
                        list(policies[index]),
                        share,
                    ): index
                    for index in left
                }
                for future in _as_finished(futures):
                    index, loss = futures[future], future.result()
                    left.remove(index)
                    finished += 1
                    yield index, loss
            except BrokenExecutor as error:
                deaths = 1 if finished else deaths + 1
                if deaths > DEATHS:
                    raise UserError(
                        f"worker processes died {deaths} times before a candidate was scored",
                        where="machine.workers",
                        remedy="look for the kernel's out-of-memory killer; use fewer workers",
                    ) from error
                self._executor.shutdown(wait=False)
                self._executor = self._make_executor()
            finally:
                # when the search is interrupted, too
                for future in futures:
                    future.cancel()

    def close(self) -> None:
        """Stop the processes."""
        self._executor.shutdown()


def _as_finished(futures: Mapping[Future[Any], int]) -> Iterator[Future[Any]]:
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, return_when="FIRST_COMPLETED")
        yield from sorted(done, key=lambda future: futures[future])
