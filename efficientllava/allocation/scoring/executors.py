"""Where candidates are scored: the executor that params.yaml asks for.

Dask's scheduler restarts a process that dies and gives its candidate to another; nothing of ours
schedules anything.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from efficientllava.allocation.scoring.workers import take_device
from efficientllava.errors import UserError
from efficientllava.parameters import MachineParameters


def worker_devices(machine: MachineParameters) -> list[str]:
    """The device of every worker process: all GPUs of this machine in turn, or the one named.

    Dask's workers see what their CUDA_VISIBLE_DEVICES lets them: each takes its first GPU.
    """
    if machine.device != "cuda" or machine.executor == "dask":
        return [machine.device] * machine.workers
    import torch

    count = max(torch.cuda.device_count(), 1)
    return [f"cuda:{number % count}" for number in range(machine.workers)]


def executor_maker(
    machine: MachineParameters, devices: Sequence[str], scheduler: str | None = None
) -> Callable[[], Executor] | None:
    """Makes the executor of `machine.executor`; None for threads of this process.

    Args:
        devices: one for each process.
        scheduler: address of a running Dask scheduler; None for `machine.dask_address`.

    Raises:
        UserError: Dask is asked for and not installed, or its scheduler cannot be reached.
    """
    if machine.executor == "threads":
        return None
    if machine.executor == "processes":
        return lambda: process_pool(devices)
    return lambda: dask_executor(machine, scheduler)


def process_pool(devices: Sequence[str]) -> ProcessPoolExecutor:
    """A pool of one process for each device named; which process has which changes nothing."""
    context = get_context("spawn")
    queue = context.SimpleQueue()
    for device in devices:
        queue.put(device)
    return ProcessPoolExecutor(
        len(devices), mp_context=context, initializer=_begin, initargs=(queue,)
    )


def _begin(queue: Any) -> None:
    """Ctrl-C reaches all processes of a terminal: the one that started them ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    take_device(queue)


@contextmanager
def scheduler_of(address: str | None) -> Iterator[None]:
    """Report a Dask scheduler that does not answer.

    Raises:
        UserError: no connection to `address`, or to the cluster of this machine when None.
    """
    try:
        yield
    except (OSError, TimeoutError) as error:
        raise UserError(
            f"no Dask scheduler answers ({error})",
            where=f"machine.dask_address: {address}",
            remedy="start it (`dask scheduler`, `dask worker --nthreads 1`), or set it to null",
        ) from error


def dask_executor(machine: MachineParameters, scheduler: str | None = None) -> Executor:
    """A Dask client as an executor: of a scheduler's address, or of processes on this machine.

    Its shutdown closes the client, and ends processes that were started here.
    """
    try:
        from distributed import Client
        from distributed.cfexecutor import ClientExecutor
    except ImportError as error:
        raise UserError(
            "Dask is not installed",
            where="machine.executor: dask",
            remedy="pip install 'efficientllava[dask]'",
        ) from error
    address = scheduler or machine.dask_address
    of_this_machine = {
        "n_workers": machine.workers,
        "threads_per_worker": 1,
        "processes": True,
        "dashboard_address": None,
        "memory_limit": 0,
    }
    with scheduler_of(address):
        client = Client(address) if address else Client(**of_this_machine)

    class ClosingExecutor(ClientExecutor):  # type: ignore[misc]
        """Closes its client, too."""

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            """See `concurrent.futures.Executor`."""
            super().shutdown(wait and not cancel_futures)
            client.close()

    # candidates are pure: equal ones may share a result, dead ones are tried again elsewhere
    executor: Executor = ClosingExecutor(client, retries=2)
    return executor
