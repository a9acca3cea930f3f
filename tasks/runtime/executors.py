"""Where candidates are scored: the executor that params.yaml asks for.

Dask's scheduler restarts a process that dies and gives its candidate to another; nothing of ours
schedules anything. A cluster that Prefect's Dask task runner has started is used by its address.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from efficientllava.allocation.workers import take_device
from efficientllava.errors import UserError
from efficientllava.parameters import SearchParameters

DASK_SCHEDULER = "EFFICIENTLLAVA_DASK_SCHEDULER"
"""Set by the flow for a search's process: address of the cluster that its searches share."""


def worker_devices(parameters: SearchParameters, device: str) -> list[str]:
    """The device of every worker process: all GPUs of this machine in turn, or the one named.

    Dask's workers see what their CUDA_VISIBLE_DEVICES lets them: each takes its first GPU.
    """
    if device != "cuda" or parameters.executor == "dask":
        return [device] * parameters.workers
    import torch

    count = max(torch.cuda.device_count(), 1)
    return [f"cuda:{number % count}" for number in range(parameters.workers)]


def executor_maker(
    parameters: SearchParameters, devices: Sequence[str]
) -> Callable[[], Executor] | None:
    """Makes the executor of `search.executor`; None for threads of this process.

    Args:
        devices: one for each process.

    Raises:
        UserError: Dask is asked for and not installed, or its scheduler cannot be reached.
    """
    if parameters.executor == "threads":
        return None
    if parameters.executor == "processes":
        return lambda: process_pool(devices)
    return lambda: dask_executor(parameters)


def process_pool(devices: Sequence[str]) -> ProcessPoolExecutor:
    """A pool of one process for each device named; which process has which changes nothing."""
    context = get_context("spawn")
    queue = context.SimpleQueue()
    for device in devices:
        queue.put(device)
    return ProcessPoolExecutor(
        len(devices), mp_context=context, initializer=take_device, initargs=(queue,)
    )


def dask_executor(parameters: SearchParameters) -> Executor:
    """A Dask client as an executor: of a scheduler's address, or of processes on this machine."""
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise UserError(
            "Dask is not installed",
            where="search.executor: dask",
            remedy="pip install 'efficientllava[dask]'",
        ) from error
    address = os.environ.get(DASK_SCHEDULER) or parameters.dask_address
    cluster: Any = address or LocalCluster(
        n_workers=parameters.workers,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        memory_limit=0,
    )
    try:
        client = Client(cluster)
    except (OSError, TimeoutError) as error:
        raise UserError(
            f"no Dask scheduler answers ({error})",
            where=f"search.dask_address: {address}",
            remedy="start it (`dask scheduler`, `dask worker --nthreads 1`), or set it to null",
        ) from error
    # candidates are pure: equal ones may share a result, dead ones are tried again elsewhere
    executor: Executor = client.get_executor(retries=2)
    return executor
