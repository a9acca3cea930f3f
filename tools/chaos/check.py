"""What must hold in a workspace after a fault and a restart."""

from __future__ import annotations

import os
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil

from tools.chaos.workspace import CACHES, Facts, outputs, work_files

TIMED = re.compile(r"^export/|_ms$|_ratio_to_dense$|seconds")
"""Names of metrics that hold times, other ones whenever they are measured."""
TEMPORARY = ("*.tmp", "*.old", "*-journal", "*.partial")
UNFINISHED = ("RUNNING", "PENDING", "CANCELLING", "SCHEDULED", "PAUSED")


def problems(folder: Path, facts: Facts, home: Path) -> Iterator[str]:
    """Everything that is not as after an undisturbed run, in words.

    Args:
        home: the folder of Prefect's database.
    """
    yield from _other_bytes(facts, outputs(folder))
    yield from _temporary(folder, facts)
    yield from _mlflow(folder, facts)
    yield from _prefect(home / "prefect.db")
    yield from (f"an orphan: {words}" for words in living(folder).values())


def living(folder: Path) -> dict[int, str]:
    """Processes that work in a folder, by their numbers."""
    found = {}
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
            where, words = process.cwd(), " ".join(process.cmdline())
        except psutil.Error:
            continue
        if where == str(folder) or where.startswith(f"{folder}/"):
            found[process.pid] = f"process {process.pid} `{words[:120]}`"
    return found


def _other_bytes(facts: Facts, found: dict[str, str]) -> Iterator[str]:
    expected = facts.digests.keys() | set(facts.timed)
    for path in sorted(expected - found.keys()):
        yield f"artifacts/{path} is missing"
    for path in sorted(found.keys() - expected):
        yield f"artifacts/{path} is new"
    for path, digest in facts.digests.items():
        if found.get(path, digest) != digest:
            yield f"artifacts/{path} has other bytes"


def _temporary(folder: Path, facts: Facts) -> Iterator[str]:
    for pattern in TEMPORARY:
        for path in folder.rglob(pattern):
            name = path.relative_to(folder)
            if CACHES not in name.parts:
                yield f"{name} is a temporary file"
    for path in sorted(set(work_files(folder)) - set(facts.work)):
        yield f".work/{path} is left over"


def _mlflow(folder: Path, facts: Facts) -> Iterator[str]:
    records = mlflow_records(folder)
    for name, expected in facts.records.items():
        if records[name] != expected:
            yield f"MLflow's {name}: {_difference(records[name], expected)}"


def _difference(found: Any, expected: Any) -> str:
    if not isinstance(found, dict):
        return f"{found} and not {expected}"
    names = [
        name
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    few = [f"{name} is {found.get(name)} and not {expected.get(name)}" for name in names[:3]]
    return f"{len(names)} differ, of them " + "; ".join(few)


def mlflow_records(folder: Path) -> dict[str, Any]:
    """What MLflow's database holds, without names and times that differ in every run.

    Returns:
        `runs`: how many there are by "NAME STATUS"; `versions`: how many by the source of the
        model; `champion`: the source of the version that has the alias; `metrics`: by
        "RUN NAME", the [step, value] pairs.
    """
    with closing(sqlite3.connect(f"file:{folder / 'mlflow.db'}?mode=ro", uri=True)) as database:
        active = "lifecycle_stage = 'active'"
        runs = database.execute(f"SELECT name, status FROM runs WHERE {active}").fetchall()
        versions = database.execute("SELECT source FROM model_versions").fetchall()
        champion = database.execute(
            "SELECT source FROM model_versions JOIN registered_model_aliases AS alias "
            "ON alias.name = model_versions.name AND alias.version = model_versions.version"
        ).fetchall()
        rows = database.execute(
            "SELECT DISTINCT runs.name, key, step, value FROM metrics "
            f"JOIN runs ON runs.run_uuid = metrics.run_uuid WHERE {active} ORDER BY 1, 2, 3, 4"
        ).fetchall()
    metrics: dict[str, list[list[float]]] = {}
    for run, key, step, value in rows:
        if not TIMED.search(key):
            metrics.setdefault(f"{run} {key}", []).append([step, value])
    return {
        "runs": dict(Counter(f"{name} {status}" for name, status in runs)),
        "versions": dict(Counter(source for (source,) in versions)),
        "champion": [source for (source,) in champion],
        "metrics": metrics,
    }


def _prefect(path: Path) -> Iterator[str]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        for table in ("flow_run", "task_run"):
            rows = database.execute(f"SELECT name, state_type FROM {table}").fetchall()
            for name, state in rows:
                if state in UNFINISHED:
                    yield f"Prefect's {table} {name} is {state}"
