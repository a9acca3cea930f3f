"""The ratios that the paper's search finds, from a context: model, database and workers opened."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from efficientllava.allocation.context import Allocation, Context, Risk
from efficientllava.allocation.scoring.executors import executor_maker, worker_devices
from efficientllava.allocation.scoring.workers import ProcessEvaluator, Work
from efficientllava.allocation.search.algorithm import Search, SearchGoal, SearchInputs
from efficientllava.allocation.search.state import ROUND_RECORD, reported
from efficientllava.allocation.unfinished import unfinished
from efficientllava.database.offloaded import Machine, offloaded
from efficientllava.database.solutions import open_database
from efficientllava.offload.devices import open_device
from efficientllava.parameters import SearchParameters


def searched(context: Context, parameters: SearchParameters, upper_bound: bool) -> Allocation:
    """Search a policy and evolve the projector (Algorithm 1); finished rounds resume.

    Args:
        parameters: of the search, with the method's own changes.
        upper_bound: see `SearchGoal`.

    Raises:
        UserError: as `Search`; the model does not fit on the device.
    """
    started = time.monotonic()
    machine, levels = context.parameters.machine, context.parameters.levels(context.ratio)
    every = (context.parameters.levels(ratio) for ratio in context.parameters.ratios)
    folders = context.database_folders(levels, {level for each in every for level in each})
    # beside the worker processes, this one moves the projector on the first device
    workers = worker_devices(machine) if machine.executor != "threads" else []
    here = [] if machine.dask_address else workers  # others have GPUs of their own
    sharing = 1 + max((here.count(device) for device in here), default=0)
    with offloaded(
        context.model,
        open_database(folders, levels),
        context.proxy,
        Machine(open_device(machine.device), machine.device_memory, sharing),
        context.work,
        parameters.projector_batch if parameters.evolve_projector else 0,
        parameters.kl_tokens,
        machine.gradient_checkpointing,
    ) as opened:
        result = Search(
            SearchInputs(opened.adapter, context.proxy, opened.database, opened.blocks),
            SearchGoal(levels, context.ratio, parameters, upper_bound),
            machine,
            unfinished(context.work, "search", machine),
            {"database": context.database_key()},
            context.progress,
            _evaluator_maker(context, folders, opened.adapter.sizes, parameters, workers, sharing),
        ).run(started)
    records = {record["round"]: record for record in result.rounds}
    history = []
    for candidate in result.history:
        row = candidate.as_row()
        row["policy"] = [levels[gene] for gene in row.pop("genes")]
        if candidate.index == 0:  # what the round reported when it ended
            row[ROUND_RECORD] = reported(records[candidate.round])
        history.append(row)
    risk = Risk(parameters.complexity, parameters.eta)
    return Allocation(
        result.policy, "search", result.projector, history, result.summary, risk, levels
    )


def _evaluator_maker(
    context: Context,
    database: Sequence[Path],
    sizes: Sequence[int],
    parameters: SearchParameters,
    devices: Sequence[str],
    sharing: int,
) -> Callable[[Path], ProcessEvaluator] | None:
    """Scores candidates in other processes, if the parameters ask for that."""
    machine = context.parameters.machine
    make_executor = executor_maker(machine, devices, context.scheduler)
    if make_executor is None:
        return None
    work = Work(
        str(context.model.resolve()),
        str(context.proxy_folder.resolve()),
        tuple(str(folder.resolve()) for folder in database),
        parameters.fitness,
        parameters.fitness_data,
        parameters.kl_tokens,
        machine.threads,
        machine.device,
        machine.device_memory,
        sharing,
    )
    return lambda folder: ProcessEvaluator(work, make_executor, folder, sizes)
