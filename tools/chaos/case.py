"""One case: a copy of the reference, blows, a restart, and what is wrong afterwards."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from tools.chaos.cases import BEGIN, RECORDS, Blow, Case
from tools.chaos.check import living, problems
from tools.chaos.faults import Faults, Server, unmount
from tools.chaos.flow import Flow, reach
from tools.chaos.reference import REFERENCE, WORKSPACE
from tools.chaos.workspace import (
    Facts,
    copy,
    forget,
    forget_records,
    forget_work,
    is_finished,
)

PATIENCE = 15.0
"""Seconds in which the processes of a killed run must have ended."""
LONGEST = 900.0
"""Seconds after a blow in which the run must have ended, on a machine at work for others too."""
GENTLE = ("server", "guard", "freeze_server", "prefect_server")
"""Faults that no stage may notice: only Prefect's records are lost."""


def disturb(case: Case, folder: Path, facts: Facts, prefect: Server) -> dict[str, Any]:
    """Do a case.

    Args:
        folder: where the reference is, and the workspace is made.
        prefect: the shared server of Prefect.

    Returns:
        `blows`: of each the `moment`, the `fault`, whether it was `missed`, `when` it was, in
        words, and the `status` of the run; `problems`: in words, none if the case survived;
        `seconds`.
    """
    began, workspace = time.monotonic(), folder / WORKSPACE
    _prepare(case, folder, facts)
    logs, rows, found = [], [], []
    server = prefect if case.shared else None
    with Faults(case.fault, case.blows[0].part, case.number, workspace, server) as faults:
        for index, blow in enumerate(case.blows):
            if index and case.stage in facts.stages and is_finished(workspace, case.stage):
                forget(workspace, case.stage)  # it outlived the blow
            logs.append(folder / f"{case.number:03d}-{index}.log")
            flow = Flow(workspace, logs[-1], faults.variables)
            moment = reach(flow, case.stage, blow, facts)
            action = None if moment is None else faults.strike(flow, blow)
            status = flow.wait(LONGEST)
            when = f"{action}, {moment}" if action else "the run was over"
            row = {"moment": blow.moment, "fault": blow.fault, "missed": action is None}
            rows.append({**row, "when": when, "status": status})
            found += [f"{when}: {problem}" for problem in _after(blow, flow, status, workspace)]
            faults.mend()
        logs.append(folder / f"{case.number:03d}-last.log")
        last = Flow(workspace, logs[-1], faults.variables)
        if (status := last.wait()) != 0:
            said = last.text.strip().splitlines()[-3:]
            found.append(f"the restart ended with {status}: {' / '.join(said)}")
        if "Traceback" in last.text:
            found.append("a traceback in the restart")
    home = prefect.home if case.shared else workspace / ".prefect"
    found += problems(workspace, facts, home)
    if found:
        kept = folder / f"{case.number:03d}-workspace"
        shutil.rmtree(kept, ignore_errors=True)
        workspace.rename(kept)
    else:
        for log in logs:
            log.unlink()
    return {"blows": rows, "problems": found, "seconds": time.monotonic() - began}


def _prepare(case: Case, folder: Path, facts: Facts) -> None:
    workspace = folder / WORKSPACE
    unmount(workspace)
    copy(folder / REFERENCE, workspace)
    if case.stage not in (BEGIN, RECORDS):
        forget(workspace, case.stage)
    elif case.fault != "wiped":
        forget(workspace, facts.stages[-1])
    if case.records:
        forget_records(workspace)
    if case.fault == "wiped":
        shutil.rmtree(workspace / ".prefect")
    if case.deep:
        forget_work(workspace)


def _after(blow: Blow, flow: Flow, status: int | None, workspace: Path) -> list[str]:
    """What is wrong with a run after a blow, and with the processes that it leaves."""
    found = []
    if status is None:
        found.append("the run hung")
    if "Traceback" in flow.text:
        found.append("a traceback")
    if blow.fault in GENTLE and status != 0:
        said = flow.text.strip().splitlines()[-2:]
        found.append(f"the run ended with {status}: {' / '.join(said)}")
    end = time.monotonic() + PATIENCE
    while (left := living(workspace)) and time.monotonic() < end:
        time.sleep(0.1)
    return found + [f"{words} lives on" for words in left.values()]
