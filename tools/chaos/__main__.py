"""Disturb the pipeline and look whether it survives: `python -m tools.chaos --cases 60`.

Every case copies a workspace in which the smallest pipeline has run and lets one stage run again.
It kills five runs, from the stage's start to its end, or does something else to one run, and starts
the flow once more. Then files, records and processes must be what an undisturbed run left. The same
seed gives the same cases; those that were done with the same pipeline are not done again. Exit
status: 0 if every case survived, 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from efficientllava.errors import UserError
from tools.chaos.case import disturb
from tools.chaos.cases import Case, plan
from tools.chaos.faults import Server
from tools.chaos.reference import make_reference
from tools.chaos.table import table
from tools.chaos.workspace import ROOT, commit_of, journal


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.chaos", description=__doc__)
    parser.add_argument("--cases", type=int, default=60, help="how many of the seed's list")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of cases, done again")
    parser.add_argument("--folder", type=Path, default=ROOT / ".work" / "chaos")
    parser.add_argument("--minutes", type=float, help="begin no case after that")
    parser.add_argument("--table", action="store_true", help="print the table of what was done")
    return parser.parse_args()


def main() -> int:
    """Do the cases that are not done; print each and the table of all."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    commit, key = commit_of(ROOT)
    folder = options.folder.resolve() / key
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / f"journal-{options.seed}.jsonl"
    if not options.table:
        _disturb(options, folder, rows, commit)
    latest = {row["number"]: row for row in journal(rows)}
    print(table(list(latest.values()), options.seed))
    return 1 if any(row["problems"] for row in latest.values()) else 0


def _disturb(options: argparse.Namespace, folder: Path, rows: Path, commit: str) -> None:
    began, facts = time.monotonic(), make_reference(ROOT, folder)
    done = {row["number"] for row in journal(rows)}
    prefect = Server("prefect", ROOT, folder / "prefect-server")
    try:
        prefect.start()
        for case in plan(facts.stages, options.cases, options.seed):
            wanted = (
                case.number not in done if options.only is None else case.number in options.only
            )
            if not wanted:
                continue
            if options.minutes and time.monotonic() - began > 60 * options.minutes:
                print("the time is over; the same command does the rest", flush=True)
                return
            outcome = {"commit": commit, **disturb(case, folder, facts, prefect)}
            _note(rows, case, outcome)
    finally:
        prefect.end()


def _note(rows: Path, case: Case, outcome: dict[str, Any]) -> None:
    settings = {name: value for name, value in vars(case).items() if name != "blows"}
    with open(rows, "a", encoding="utf-8") as file:
        file.write(json.dumps({**settings, **outcome}) + "\n")
        file.flush()
        os.fsync(file.fileno())
    verdict = "; ".join(outcome["problems"]) or "survived"
    print(f"{case.number:4} {case.stage} ({outcome['seconds']:.0f} s): {verdict}", flush=True)
    for blow in outcome["blows"]:
        print(f"       {blow['moment']:8} {blow['when']}: status {blow['status']}", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
