"""The decision of a run, beside its report: the champion and why, what to deploy, what it cost."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact

from efficientllava.errors import UserError
from efficientllava.parameters import Parameters
from efficientllava.report.decision.page import (
    DecisionPage,
    Deployable,
    StageCosts,
    write_decision,
)
from efficientllava.report.decision.paired import Answers
from efficientllava.versions.aliases import CHAMPION
from flows.runner.graph import Node
from flows.runner.recording import RECORDING
from flows.server.pages import SHOW, pages
from flows.tracking.champion import candidates, target_ratio
from flows.tracking.record import ModelRecord, cell_of
from flows.tracking.registry import Decision
from flows.tracking.tracking import Tracking
from tasks.runtime.cost import read_cost
from tasks.runtime.stage import ARTIFACTS


def keep_decision(
    root: Path,
    parameters: Parameters,
    nodes: Sequence[Node],
    records: Sequence[ModelRecord],
    decision: Decision,
    tracking: Tracking,
) -> Path:
    """Write the decision beside the report.

    Args:
        nodes: the stages of the run.
    """
    links = pages(parameters.tracking, root, tracking.experiment)
    found: dict[str, Answers] = {}
    for record in candidates(records, target_ratio(parameters)):
        if (answers := record.answers) is not None:
            found[record.cell] = answers
    page = DecisionPage(
        decision.said,
        dict(_facts(root, parameters, decision)),
        links,
        [(row["model"], row["check"], row["result"], row["reason"]) for row in decision.rows],
        list(_deploy(root, records, decision.source)),
        found,
        [_costs(root, nodes, record.cell) for record in records],
    )
    return write_decision(page, root / ARTIFACTS)


def _facts(root: Path, parameters: Parameters, decision: Decision) -> Iterator[tuple[str, str]]:
    from efficientllava.export.speed import machine

    if decision.version is not None:
        name = parameters.tracking.registered_model
        yield "champion", f"models:/{name}@champion, version {decision.version}"
    yield "decided", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    yield "commit", _commit(root)
    yield "pages", f"{SHOW} opens MLflow's and Prefect's where no server of yours shows them"
    found = machine()
    threads, device = parameters.machine.threads, parameters.machine.device
    yield (
        "machine",
        f"{found['processor']} with {found['cores']} cores ({found['architecture']}), "
        f"{_memory():.1f} GiB of memory, {found['system']}, Python {found['python']}; results "
        f"computed on {device} with {threads} thread{'s' if threads > 1 else ''}; "
        f"{_load(found['load_average_before'], found['cores'])}",
    )


def _load(average: float, cores: int) -> str:
    if average > cores:
        return f"a busy machine at the end (load average {average:g}): times are of a busy machine"
    return f"load average {average:g} at the end"


def _memory() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _commit(root: Path) -> str:
    """The commit of the clone, and whether files differ from it."""
    commit = _git(root, "rev-parse", "--short", "HEAD")
    if commit is None:
        return "not known: no git repository"
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}, with changed files" if changed else commit


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _deploy(root: Path, records: Iterable[ModelRecord], source: str | None) -> Iterator[Deployable]:
    """The champion's folders, if they lie in this workspace, and the way to fetch its weights."""
    if source is None:
        return
    champion = next(
        (record for record in records if record.checkpoint and record.checkpoint.uri == source),
        None,
    )
    if champion is not None:
        pruned, export = ARTIFACTS / "pruned" / champion.cell, ARTIFACTS / "export" / champion.cell
        for what, folder, files in (
            ("checkpoint for transformers", pruned, _files(root / pruned)),
            ("packed checkpoint", export / "packed", _files(root / export / "packed")),
            ("ONNX graphs", export, _graphs(root / export)),
        ):
            if files:
                size = sum(file.stat().st_size for file in files) / 1e6
                yield Deployable(
                    what, str(folder), size, f"efficientllava ask {folder} IMAGE QUESTION"
                )
    yield Deployable(
        "by name, in any clone", source, None, f"efficientllava fetch {CHAMPION} FOLDER"
    )


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _graphs(folder: Path) -> list[Path]:
    """The files beside the packed checkpoint; none where there is no graph among them."""
    files = [path for path in folder.glob("*") if path.is_file()]
    return files if any(path.suffix == ".onnx" for path in files) else []


def _costs(root: Path, nodes: Iterable[Node], cell: str) -> StageCosts:
    stages: dict[str, tuple[float, float] | None] = {}
    for node in nodes:
        if cell_of(node) == cell:
            cost = read_cost(node.name, root)
            seconds = None if cost is None else (cost.wall_seconds, cost.cpu_seconds)
            stages[node.base.removesuffix(f"_{cell}")] = seconds
    return StageCosts(cell, stages)


def keep_comparison(parameters: Parameters) -> None:
    """The comparison as an artifact of the flow run."""
    from efficientllava.report.comparison import markdown, read_rows

    try:
        rows = read_rows(ARTIFACTS, parameters.methods, parameters.ratios)
    except UserError as error:
        get_run_logger().warning("no comparison: %s", error)
        return
    title = "All models, measured"
    RECORDING.tell(create_markdown_artifact, markdown(rows), key="comparison", description=title)
