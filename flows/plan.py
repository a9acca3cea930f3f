"""The command line of the pipeline, and `--dry-run`: which stages would run, why, for how long."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import chdir, nullcontext
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from efficientllava.report.terminal import print_whole
from efficientllava.terminal import duration
from flows.form import Form, add_fields, form_of, workspace
from flows.runner.graph import Changes, read_graph
from tasks.runtime.cost import read_cost
from tasks.runtime.workspace import workspace_lock


@dataclass(frozen=True)
class Given:
    """The command line."""

    form: Form
    until: list[str]
    dry_run: bool


def parse_form(description: str, arguments: Sequence[str] | None) -> Given:
    """Read the command line: the fields of Prefect's form, and --dry-run."""
    parser = argparse.ArgumentParser("python -m flows.pipeline", description=description)
    add_fields(parser)
    parser.add_argument("--until", nargs="+", default=[], help="stages that are wanted")
    parser.add_argument(
        "--dry-run", action="store_true", help="say which stages would run, and run none"
    )
    given = parser.parse_args(arguments)
    return Given(form_of(given), given.until, given.dry_run)


@dataclass(frozen=True)
class Planned:
    """One stage.

    Attributes:
        state: "runs"; "may run" where its inputs may change before its turn; "cached".
        reason: why.
        seconds: how long it took last time, where that is known.
    """

    stage: str
    state: str
    reason: str
    seconds: float | None


def plan(root: Path, until: Sequence[str] = ()) -> list[Planned]:
    """All stages in their order. DVC decides; nothing is run or written.

    Raises:
        UserError: dvc.yaml, params.yaml or a file that a stage depends on cannot be read.
    """
    nodes, changes = read_graph(root, until), Changes(root)
    planned: dict[str, Planned] = {}
    for node in nodes:
        before = [name for name in node.depends_on if planned[name].state != "cached"]
        state, reason = "runs", changes.why(node.name)
        if reason is None:
            state, reason = "cached", ""
            if before:
                state, reason = "may run", f"if outputs change: {', '.join(before)}"
        cost = read_cost(node.name, root)
        seconds = None if cost is None else cost.wall_seconds
        planned[node.name] = Planned(node.name, state, reason, seconds)
    return list(planned.values())


def print_plan(root: Path, form: Form, until: Sequence[str]) -> None:
    """Print the plan as a table, and the sum of what is known.

    With a form its workspace is made, since DVC reads the files of a folder.

    Raises:
        UserError: as `plan`; another run works here.
    """
    with workspace_lock("the dry run") if form.fields else nullcontext():
        folder = workspace(root, form)
        with chdir(folder):
            planned = plan(folder, until)
    table = Table("stage", "", "last time", "why")
    for stage in planned:
        took = "" if stage.seconds is None else duration(stage.seconds)
        table.add_row(*map(escape, (stage.stage, stage.state, took, stage.reason)))
    console = Console()
    print_whole(console, table)
    running = [stage for stage in planned if stage.state != "cached"]
    known = [stage.seconds for stage in running if stage.seconds is not None]
    unknown = len(running) - len(known)
    said = f"{len(running)} of {len(planned)} stages would or may run"
    if known:
        said += f"; they took {duration(sum(known))} last time"
    if unknown:
        said += f"; of {unknown} the time is not known" if known else "; their time is not known"
    console.print(f"{said}. Nothing was run.", highlight=False)
