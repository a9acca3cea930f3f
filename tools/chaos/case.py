"""One case: a copy of the reference, a fault, a restart, and what is wrong afterwards."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from tools.chaos.cases import BEGIN, RECORDS, Case
from tools.chaos.check import living, problems
from tools.chaos.faults import Fault
from tools.chaos.flow import Flow, reach
from tools.chaos.reference import REFERENCE, WORKSPACE
from tools.chaos.workspace import Facts, copy, forget, forget_records, forget_work

PATIENCE = 15.0
"""Seconds in which the processes of a killed run must have ended."""
LONGEST = 240.0
"""Seconds after a fault in which the run must have ended, on a machine at work for others too."""
GENTLE = ("server", "guard", "freeze_server")
"""Faults that no stage may notice: only Prefect's records are lost."""


def disturb(case: Case, folder: Path, facts: Facts) -> dict[str, Any]:
    """Do a case.

    Returns:
        `missed`: whether the moment did not come; `when`: the moment and what was done, in words;
        `statuses`: of the two runs; `problems`: in words, none if it survived; `seconds`.
    """
    began, workspace = time.monotonic(), folder / WORKSPACE
    log, again = folder / f"{case.number:03d}-first.log", folder / f"{case.number:03d}-second.log"
    _prepare(case, folder, facts)
    outcome: dict[str, Any] = {"missed": False, "when": "", "statuses": [], "problems": []}
    with Fault(case, workspace, folder / "server.log") as fault:
        flow = Flow(workspace, log, fault.variables)
        moment = reach(flow, case, facts)
        action = None if moment is None else fault.strike(flow)
        outcome["statuses"].append(flow.wait(LONGEST))
        outcome["when"] = f"{action or 'nothing'}, {moment or 'the run was over'}"
        outcome["missed"] = action is None
        outcome["problems"] += _after_first(case, flow, outcome["statuses"][0], workspace, fault)
        fault.mend()
        second = Flow(workspace, again, fault.variables)
        outcome["statuses"].append(second.wait())
        if outcome["statuses"][1] != 0:
            said = second.text.strip().splitlines()[-3:]
            outcome["problems"].append(f"restart: {outcome['statuses'][1]}: {' / '.join(said)}")
        if "Traceback" in second.text:
            outcome["problems"].append("a traceback in the restart")
    outcome["problems"] += problems(workspace, facts)
    outcome["seconds"] = time.monotonic() - began
    if outcome["problems"]:
        kept = folder / f"{case.number:03d}-workspace"
        shutil.rmtree(kept, ignore_errors=True)
        workspace.rename(kept)
    else:
        log.unlink()
        again.unlink()
    return outcome


def _prepare(case: Case, folder: Path, facts: Facts) -> None:
    workspace = folder / WORKSPACE
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


def _after_first(
    case: Case, flow: Flow, status: int | None, workspace: Path, fault: Fault
) -> list[str]:
    found = []
    if status is None:
        found.append("the disturbed run hung")
    if "Traceback" in flow.text:
        found.append("a traceback in the disturbed run")
    if case.fault in GENTLE and status != 0:
        said = flow.text.strip().splitlines()[-2:]
        found.append(f"the loss of Prefect's server ended the run: {status}: {' / '.join(said)}")
    end = time.monotonic() + PATIENCE
    left = _left(workspace, fault)
    while left and time.monotonic() < end:
        time.sleep(0.1)
        left = _left(workspace, fault)
    return found + [f"lives on after the disturbed run: {words}" for words in left]


def _left(workspace: Path, fault: Fault) -> list[str]:
    """Processes of the workspace, but for the servers of the case itself."""
    return [words for number, words in living(workspace).items() if number not in fault.own()]
