"""A run of the flow as a process: its log, how far its stages are, and the processes it has."""

from __future__ import annotations

import atexit
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from tools.chaos.cases import BEGIN, RECORDS, Blow
from tools.chaos.workspace import Facts, environment, journal

TICK = 0.004
LONGEST = 3600.0
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
        atexit.register(self.kill)

    def kill(self) -> None:
        """Kill it and its process group, if it runs."""
        if not self.is_over:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

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
            self.kill()
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

    def events(self, stage: str) -> list[str]:
        """The events that a stage has reported, see `events_in`."""
        return events_in(self.folder, stage)

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


def events_in(folder: Path, stage: str) -> list[str]:
    """What a stage has reported since it began: name, done and total of each event."""
    rows = journal(folder / ".work" / "events" / f"{stage}.jsonl")
    return [f"{row['name']} {row['done']}/{row['total']}" for row in rows]


def reach(flow: Flow, stage: str, blow: Blow, facts: Facts) -> str | None:
    """Wait for the moment of a blow: where the run is then, in words; None if it ended before."""
    if stage == BEGIN:
        _sleep(flow, facts.begin * (_third(blow) + blow.part / 3))
        return None if flow.is_over else _where(flow, "after the start of the flow", flow.began)
    if stage == RECORDS:
        last = facts.stages[-1]
        if not flow.until(lambda: flow.ended_stage(last)):
            return None
        since = time.monotonic()
        _sleep(flow, 3.0 * (_third(blow) + blow.part / 3))
        return None if flow.is_over else _where(flow, f"after the end of {last}", since)
    count, seconds = len(facts.events[stage]), facts.seconds[stage]
    if not flow.until(lambda: flow.began_stage(stage)):
        return None
    since = time.monotonic()
    if blow.moment == "start" or not count:
        _sleep(flow, seconds * (_third(blow) + blow.part / 3))
    else:
        # a stage that resumes reports fewer events: the last of them counts too
        wanted = 1 + int(blow.part * (count - 1)) if blow.moment == "middle" else count
        last = facts.events[stage][-1]
        if not flow.until(lambda: len(seen := flow.events(stage)) >= wanted or seen[-1:] == [last]):
            return None
        if blow.moment == "end":
            _sleep(flow, blow.part)
    seen = f"after {stage} began, {len(flow.events(stage))} of {count} events"
    return None if flow.is_over else _where(flow, seen, since)


def _third(blow: Blow) -> float:
    return {"start": 0.0, "middle": 1 / 3, "end": 2 / 3}[blow.moment]


def _sleep(flow: Flow, seconds: float) -> None:
    flow.until(lambda: False, seconds)


def _where(flow: Flow, words: str, since: float) -> str:
    return f"{time.monotonic() - since:.2f} s {words}"
