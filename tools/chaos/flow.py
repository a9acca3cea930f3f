"""A run of the flow as a process: its log, how far its stages are, and the processes it has."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from tools.chaos.cases import BEGIN, RECORDS, Case
from tools.chaos.workspace import Facts, environment

TICK = 0.004
LONGEST = 900.0
"""Seconds after which a run counts as hanging, on a machine at work for others too."""
ENDED = re.compile(r"Task run '([^']+)' - Finished in state")


class Flow:
    """`python -m flows.pipeline` in a workspace, in a process group of its own.

    Args:
        folder: the workspace.
        log: where it prints.
        variables: of its environment, beside the usual ones.
    """

    def __init__(self, folder: Path, log: Path, variables: Mapping[str, str] | None = None) -> None:
        self.folder, self.log, self.began = folder, log, time.monotonic()
        with open(log, "w", encoding="utf-8") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.pipeline"],
                cwd=folder,
                env=environment(folder, variables or {}),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        """All that it has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def wait(self, seconds: float = LONGEST) -> int | None:
        """Its exit status; None, and it is killed, if it does not end in time."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            return None

    def until(self, reached: Callable[[], bool], seconds: float = LONGEST) -> bool:
        """Wait for something; False if the run ends, or the time is over, before that."""
        end = time.monotonic() + seconds
        while not reached():
            if self.is_over or time.monotonic() > end:
                return False
            time.sleep(TICK)
        return True

    def began_stage(self, stage: str) -> bool:
        """Whether it has begun to run a stage."""
        return f"'{stage}' - {stage} runs because" in self.text

    def ended_stage(self, stage: str) -> bool:
        """Whether a stage has ended, or did not have to run."""
        return stage in ENDED.findall(self.text)

    def events(self, stage: str) -> int:
        """How many events a running stage has reported."""
        path = self.folder / ".work" / "events" / f"{stage}.jsonl"
        try:
            return path.read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0

    def processes(self) -> dict[str, psutil.Process]:
        """Those that are there, by the names of `cases.KILLS`."""
        found: dict[str, psutil.Process] = {}
        try:
            flow = psutil.Process(self.process.pid)
            found["flow"] = flow
            for child in flow.children():
                words = " ".join(child.cmdline())
                if "stage_host.py" in words:
                    found["host"] = child
                    for dvc in child.children():
                        found["dvc"] = dvc
                        for stage in dvc.children():
                            found["stage"] = stage
                elif "guard.py" in words:
                    found["guard"] = child
                    for server in child.children():
                        found["server"] = server
        except psutil.NoSuchProcess:
            pass  # it has ended in the meantime
        return found


def reach(flow: Flow, case: Case, facts: Facts) -> str | None:
    """Wait for a case's moment: where the run is then, in words; None if it ended before."""
    if case.stage == BEGIN:
        _sleep(flow, facts.begin * (_third(case) + case.part / 3))
        return None if flow.is_over else _where(flow, "after the start of the flow", flow.began)
    if case.stage == RECORDS:
        last = facts.stages[-1]
        if not flow.until(lambda: flow.ended_stage(last)):
            return None
        since = time.monotonic()
        _sleep(flow, 3.0 * (_third(case) + case.part / 3))
        return None if flow.is_over else _where(flow, f"after the end of {last}", since)
    stage, count, seconds = case.stage, facts.events[case.stage], facts.seconds[case.stage]
    if not flow.until(lambda: flow.began_stage(stage)):
        return None
    since = time.monotonic()
    if case.moment == "start" or not count:
        _sleep(flow, seconds * (_third(case) + case.part / 3))
    elif case.moment == "middle":
        wanted = 1 + int(case.part * (count - 1))
        if not flow.until(lambda: flow.events(stage) >= wanted):
            return None
    else:
        if not flow.until(lambda: flow.events(stage) >= count):
            return None
        _sleep(flow, case.part)
    seen = f"after {stage} began, {flow.events(stage)} of {count} events"
    return None if flow.is_over else _where(flow, seen, since)


def _third(case: Case) -> float:
    return {"start": 0.0, "middle": 1 / 3, "end": 2 / 3}[case.moment]


def _sleep(flow: Flow, seconds: float) -> None:
    flow.until(lambda: False, seconds)


def _where(flow: Flow, words: str, since: float) -> str:
    return f"{time.monotonic() - since:.2f} s {words}"
