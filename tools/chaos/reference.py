"""The undisturbed run that every case is compared with."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from tools.chaos.check import mlflow_records
from tools.chaos.flow import Flow, events_in
from tools.chaos.workspace import FACTS, Facts, clone, copy, forget, outputs, work_files

TIMED = ("export", "report")
REFERENCE, WORKSPACE = "reference", "workspace"
LINE = re.compile(r"^(\d\d:\d\d:\d\d\.\d+) \| \w+ +\| Task run '([^']+)' - (.*)$", re.MULTILINE)


def make_reference(root: Path, folder: Path) -> Facts:
    """Run the smallest pipeline, unless that is done: what it leaves, and how long it takes.

    The stages that measure times, and the report of them, then run once more: what differs holds
    times. Every case compares all other files with this run.

    Raises:
        RuntimeError: the pipeline does not run, or the second time gives other metrics.
    """
    if (folder / FACTS).is_file():
        return Facts.load(folder)
    workspace = folder / WORKSPACE
    print("an undisturbed run first", flush=True)
    clone(root, workspace)
    first = _run(workspace, folder / "first.log")
    before, kept = outputs(workspace), folder / REFERENCE
    copy(workspace, kept)
    facts = _facts(workspace, first)
    for stage in facts.stages:
        if stage.partition("@")[0] in TIMED:
            forget(workspace, stage)
    _run(workspace, folder / "second.log")
    after = outputs(workspace)
    timed = sorted(path for path in before if after.get(path) != before[path])
    digests = {path: digest for path, digest in before.items() if path not in timed}
    facts = replace(facts, digests=digests, timed=timed)
    if (records := mlflow_records(workspace)) != facts.records:
        raise RuntimeError(f"the second time leaves other records: {records}, in {folder}")
    facts.save(folder)
    return facts


def _run(workspace: Path, log: Path) -> Flow:
    flow = Flow(workspace, log)
    if (status := flow.wait()) != 0:
        raise RuntimeError(f"an undisturbed run ended with {status}; see {log}")
    return flow


def _facts(workspace: Path, flow: Flow) -> Facts:
    lines = [(_clock(at), name, text) for at, name, text in LINE.findall(flow.text)]
    starts = {name: at for at, name, text in lines if "runs because" in text}
    ends = {name: at for at, name, text in lines if text.startswith("Finished in state")}
    return Facts(
        stages=list(starts),
        begin=8.0,
        seconds={name: max(0.1, ends[name] - starts[name]) for name in starts},
        events={name: events_in(workspace, name) for name in starts},
        digests={},
        timed=[],
        work=work_files(workspace),
        records=mlflow_records(workspace),
    )


def _clock(text: str) -> float:
    moment = datetime.strptime(text, "%H:%M:%S.%f")
    return moment.hour * 3600 + moment.minute * 60 + moment.second + moment.microsecond / 1e6
