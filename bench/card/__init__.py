"""Everything that is to be measured on a card, in one command: tests, kernels, pipeline, memory.

    python -m bench card --folder /dev/shm/bench        # about an hour on an H100
    python -m bench card --only sparse generate
    python -m bench card --device cpu --tiny            # tries the command itself, in minutes

Parts run in this order, each as a process of its own; their lines are printed at once and appended
to the record with the card, its clocks, torch, driver and commit. A part that fails leaves the
others. At the end a table says which goals are met; the exit status is 1 if one is not.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench import options_of
from bench.card.conditions import ROOT, clocks, conditions
from bench.card.goals import READERS, Goal

TESTS = ("tests/gpu", "tests/kernels/test_obs_triton.py", "tests/sparse/test_triton.py")
TINY_SIZE = ["--width", "32", "--mlp", "48", "--blocks", "2", "--vocabulary", "64"]


@dataclass(frozen=True)
class Part:
    """One part of the list.

    Attributes:
        command: arguments of this Python.
        tiny: what is added or put instead to try it on a small size.
    """

    name: str
    command: list[str]
    tiny: list[str]

    def arguments(self, options: argparse.Namespace) -> list[str]:
        """The command line for this device, size and folder."""
        more = self.tiny if options.tiny else []
        if self.name == "tests":
            return [*self.command, *(more or TESTS)]
        if self.name == "memory":
            return [*self.command, *more]
        place = ["--folder", str(options.folder)] if self.name == "gpu" else []
        return [*self.command, "--device", options.device, *more, *place]


BENCH = ["-m", "bench"]
PARTS = [
    Part("tests", ["-m", "pytest", "-q", "-m", "slow or not slow"], ["tests/gpu/test_obs.py", "-k",
         "masks_and_errors"]),
    Part("obs", [*BENCH, "obs", "--repetitions", "5"],
         ["--width", "32", "--mlp", "48", "--repetitions", "1"]),
    Part("gpu", [*BENCH, "gpu", "--modes", "80", "22", "--profile"],
         [*TINY_SIZE, "--small-tower", "--segments", "2", "--length", "16", "--pairs", "4",
          "--rounds", "2", "--candidates", "3", "--threads", "1"]),
    Part("sparse", [*BENCH, "card.sparse"],
         ["--shapes", "48x64", "--copies", "1", "--repetitions", "2", "--prefill", "20",
          "--threads", "1"]),
    Part("generate", [*BENCH, "card.generate"],
         [*TINY_SIZE, "--prompt", "8", "--new-tokens", "3", "--repetitions", "2", "--threads",
          "1"]),
    Part("projector", [*BENCH, "projector", "--dtype", "bfloat16", "--width", "4096", "--mlp",
         "11008", "--blocks", "32", "--vocabulary", "32064", "--length", "640", "--pairs", "32"],
         [*TINY_SIZE, "--length", "16", "--pairs", "4"]),
    Part("memory", [*BENCH, "card.memory"], ["--models", "7B"]),
]  # fmt: skip
"""In the order in which they run: what is to be right comes before what is to be fast."""


def main() -> int:
    """Run the parts and print which goals are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [part.name for part in PARTS]
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the command")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/bench"), help="of part gpu")
    parser.add_argument("--record", type=Path, default=Path(".work/card.md"))
    parser.add_argument("--threads", type=int, default=8)
    options = options_of(parser)

    from efficientllava.offload.devices import require_device

    require_device(options.device)
    options.record.parent.mkdir(parents=True, exist_ok=True)
    goals: list[tuple[str, Goal]] = []
    failed: list[str] = []
    with options.record.open("a", encoding="utf-8") as record:
        say(f"# {time.strftime('%Y-%m-%d %H:%M:%S %Z')}", record)
        for key, value in conditions(options.device).items():
            say(f"- {key}: {value}", record)
        for part in (part for part in PARTS if part.name in options.only):
            status, lines = run(part, options, record)
            goals += [(part.name, goal) for goal in READERS.get(part.name, lambda _: [])(lines)]
            failed += [part.name] * (status != 0)
        for line in summary(goals, failed):
            say(line, record)
    return int(bool(failed) or not all(goal.met for _, goal in goals))


def run(part: Part, options: argparse.Namespace, record: IO[str]) -> tuple[int, list[str]]:
    """(exit status, lines) of one part, which are printed and recorded as they come."""
    command = [sys.executable, *part.arguments(options)]
    say(f"\n## {part.name}\n\n    python {' '.join(command[1:])}\n", record)
    started, lines = time.perf_counter(), []
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment(options.device),
    )  # fmt: skip
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            say(lines[-1], record)
    took = time.perf_counter() - started
    after = ", ".join(f"{key} {value}" for key, value in clocks(options.device).items())
    status = process.returncode
    say(f"\n{part.name}: exit status {status}, {took:.0f} s{'; ' + after if after else ''}", record)
    return status, lines


def environment(device: str) -> dict[str, str]:
    """This process' variables; the tests of `tests/gpu` take the device from one."""
    import os

    return {**os.environ, "EFFICIENTLLAVA_TEST_CARD": device, "PYTHONUNBUFFERED": "1"}


def summary(goals: list[tuple[str, Goal]], failed: list[str]) -> list[str]:
    """The table of goals, and which parts failed."""
    lines = [
        "\n## Goals\n",
        "| part | goal | asked for | measured | met |",
        "|---|---|---|---|---|",
    ]
    for part, goal in goals:
        met = {None: "not measured", True: "yes", False: "NO"}[goal.met]
        lines.append(f"| {part} | {goal.name} | {goal.limit} | {goal.measured} | {met} |")
    return [*lines, "", f"parts that failed: {', '.join(failed) or 'none'}"]


def say(line: str, record: IO[str]) -> None:
    """Print a line and append it to the record, at once."""
    print(line, flush=True)
    record.write(line + "\n")
    record.flush()
