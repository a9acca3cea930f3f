"""Stage `search`: the ratio of every matrix: found by evolution, by outliers, or the same for all.

In:  params search, pruning, prune (owl); artifacts/model, artifacts/proxy, artifacts/database
Out: artifacts/search/METHOD-RATIO/ (policy.json, history.jsonl, projector.safetensors,
     search.json (metrics), convergence.png, policy.png)
Finished rounds are kept in .work/search: a killed run goes on from there, and more rounds are
added to those that are there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientllava.pruning.methods import Method, method_named
from tasks.runtime.stage import ARTIFACTS, WORK, Stage, run_stage

if TYPE_CHECKING:
    from efficientllava.allocation.workers import ProcessEvaluator
    from efficientllava.parameters import MachineParameters, SearchParameters


def search(stage: Stage) -> None:
    """Search a policy, or write down the uniform one or the one that outliers give."""
    method = method_named(stage.method)
    if method.allocation == "uniform":
        _write_uniform(stage)
    elif method.allocation == "outliers":
        _write_outliers(stage)
    else:
        _search(stage, method)


def _write_uniform(stage: Stage) -> None:
    from efficientllava.files import read_json

    names = read_json(ARTIFACTS / "database" / "manifest.json")["matrices"]
    policy = dict.fromkeys(names, stage.ratio)
    _write(stage, policy, "uniform", [], {}, {"mean_sparsity": stage.ratio})


def _write_outliers(stage: Stage) -> None:
    from efficientllava.allocation.owl import outlier_policy
    from efficientllava.data.proxy import load_proxy
    from tasks.runtime.devices import block_by_block

    wanted, proxy = stage.parameters.prune, load_proxy(ARTIFACTS / "proxy")
    with block_by_block(
        stage, ARTIFACTS / "model", WORK / "search" / stage.cell, proxy, levels=1
    ) as (adapter, _):
        policy, shares = outlier_policy(
            adapter,
            proxy,
            stage.ratio,
            stage.parameters.pruning,
            wanted.outlier_threshold,
            wanted.outlier_spread,
            stage.progress,
        )
    summary = {
        "mean_sparsity": stage.ratio,
        "lowest_ratio": min(policy.values()),
        "highest_ratio": max(policy.values()),
        "lowest_outlier_share": min(shares),
        "highest_outlier_share": max(shares),
    }
    _write(stage, policy, "outliers", [], {}, summary)


def _search(stage: Stage, method: Method) -> None:
    from efficientllava.allocation.search import Search
    from efficientllava.data.proxy import load_proxy
    from efficientllava.database.build import open_database
    from efficientllava.database.placed import Machine, placed
    from efficientllava.files import file_digest, folder_digest
    from tasks.runtime.devices import opened
    from tasks.runtime.executors import worker_devices
    from tasks.runtime.identity import unfinished

    levels = stage.parameters.levels(stage.ratio)
    proxy, machine = load_proxy(ARTIFACTS / "proxy"), stage.parameters.machine
    parameters = method.search_parameters(stage.parameters.search)
    # beside the worker processes, this one moves the projector on the first device
    workers = worker_devices(parameters, machine.device) if parameters.executor != "threads" else []
    here = [] if parameters.dask_address else workers  # others have GPUs of their own
    sharing = 1 + max((here.count(device) for device in here), default=0)
    with placed(
        ARTIFACTS / "model",
        open_database(ARTIFACTS / "database", levels),
        proxy,
        Machine(opened(stage), machine.device_memory, sharing),
        WORK / "search" / stage.cell,
        parameters.projector_batch if parameters.evolve_projector else 0,
        parameters.kl_tokens,
        parameters.projector_checkpointing,
    ) as found:
        result = Search(
            found.adapter,
            proxy,
            found.database,
            levels,
            stage.ratio,
            parameters,
            unfinished("search", stage),
            {
                "model": folder_digest(ARTIFACTS / "model"),
                "proxy": proxy.digest,
                "database": file_digest(ARTIFACTS / "database" / "manifest.json"),
            },
            method.upper_bound,
            stage.progress,
            _make_evaluator(found.adapter.sizes, parameters, machine, workers, sharing),
            found.blocks,
        ).run()
    history = []
    for candidate in result.history:
        row = candidate.as_row()
        row["policy"] = [levels[gene] for gene in row.pop("genes")]
        history.append(row)
    _write(stage, result.policy, "search", history, result.projector, result.summary)


def _make_evaluator(
    sizes: list[int],
    parameters: SearchParameters,
    machine: MachineParameters,
    devices: list[str],
    sharing: int,
) -> Callable[[Path], ProcessEvaluator] | None:
    """Scores candidates in other processes, if params.yaml asks for that."""
    from efficientllava.allocation.workers import ProcessEvaluator, Work
    from tasks.runtime.executors import executor_maker

    make_executor = executor_maker(parameters, devices)
    if make_executor is None:
        return None
    work = Work(
        str((ARTIFACTS / "model").resolve()),
        str((ARTIFACTS / "proxy").resolve()),
        str((ARTIFACTS / "database").resolve()),
        parameters.fitness,
        parameters.fitness_data,
        parameters.kl_tokens,
        parameters.threads,
        machine.device,
        machine.device_memory,
        sharing,
    )
    return lambda folder: ProcessEvaluator(work, make_executor, folder, sizes)


def _write(
    stage: Stage,
    policy: dict[str, float],
    allocation: str,
    history: list[dict[str, Any]],
    projector: dict[str, Any],
    summary: dict[str, Any],
) -> None:
    from efficientllava.files import save_tensors, write_json, write_text
    from efficientllava.report.plots import policy_plot

    folder = stage.folder("search")
    title = f"{stage.method} at {stage.ratio:g}"
    policy_plot(policy, folder / "policy.png", stage.ratio, f"{title}: share of zeros per matrix")
    _plot_history(history, folder / "convergence.png", title, allocation)
    save_tensors(folder / "projector.safetensors", projector)
    lines = (json.dumps(row, sort_keys=True) + "\n" for row in history)
    write_text(folder / "history.jsonl", "".join(lines))
    write_json(folder / "search.json", summary)
    record = {
        "method": stage.method,
        "ratio": stage.ratio,
        "levels": stage.parameters.levels(stage.ratio),
        "allocation": allocation,
        "mean_sparsity": summary["mean_sparsity"],
        "policy": policy,
    }
    write_json(folder / "policy.json", record)


def _plot_history(history: list[dict[str, Any]], path: Path, title: str, allocation: str) -> None:
    """The convergence of a search; of a policy without one, the statement of that."""
    from efficientllava.report.plots import convergence_plot
    from efficientllava.report.theme import LIGHT, figure

    if history:
        convergence_plot(history, path, title)
        return
    with figure(path, LIGHT, 6, 1.2) as made:
        made.text(0.02, 0.5, f"{title}: {allocation}, nothing was searched", color=LIGHT.soft)


if __name__ == "__main__":
    run_stage(search, per_model=True)
