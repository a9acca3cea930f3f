"""The undisturbed runs that every case is compared with."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path

from tools.chaos.check import mlflow_records
from tools.chaos.flow import Flow
from tools.chaos.workspace import FACTS, Facts, clone, copy, forget, outputs, work_files

REFERENCE, WORKSPACE = "reference", "workspace"
LINE = re.compile(r"^(\d\d:\d\d:\d\d\.\d+) \| \w+ +\| Task run '([^']+)' - (.*)$", re.MULTILINE)


def make_reference(root: Path, folder: Path) -> Facts:
    """Run the smallest pipeline twice, unless that is done: what it leaves, and how long it takes.

    The second time all stages run again, so that files that hold times are known.

    Raises:
        RuntimeError: the pipeline does not run, or its second run gives other metrics.
    """
    if (folder / FACTS).is_file():
        return Facts.load(folder)
    workspace = folder / WORKSPACE
    print("two undisturbed runs first", flush=True)
    clone(root, workspace)
    first = _run(workspace, folder / "first.log")
    before, kept = outputs(workspace), folder / REFERENCE
    copy(workspace, kept)
    facts = _facts(workspace, first)
    for stage in facts.stages:
        forget(workspace, stage)
    _run(workspace, folder / "second.log")
    after = outputs(workspace)
    timed = sorted(path for path in before if after.get(path) != before[path])
    facts = Facts(
        **{
            **vars(facts),
            "digests": {path: digest for path, digest in before.items() if path not in timed},
            "timed": timed,
        }
    )
    if mlflow_records(workspace) != facts.records:
        raise RuntimeError(f"two undisturbed runs leave other records: {folder}")
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
    created = workspace / ".work" / "events"
    return Facts(
        stages=list(starts),
        begin=8.0,
        seconds={name: max(0.1, ends[name] - starts[name]) for name in starts},
        events={name: _count(created / f"{name}.jsonl") for name in starts},
        digests={},
        timed=[],
        work=work_files(workspace),
        records=mlflow_records(workspace),
    )


def _clock(text: str) -> float:
    moment = datetime.strptime(text, "%H:%M:%S.%f")
    return moment.hour * 3600 + moment.minute * 60 + moment.second + moment.microsecond / 1e6


def _count(path: Path) -> int:
    return len([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])
