"""What is shown when a run has ended: the comparison, and where to look."""

from __future__ import annotations

from pathlib import Path

from efficientllava.errors import UserError
from efficientllava.parameters import Parameters
from flows.server.pages import KINDS, SHOW, pages
from flows.tracking.tracking import experiment_number
from tasks.runtime.stage import ARTIFACTS


def show_comparison(parameters: Parameters) -> None:
    """The comparison, and where to look."""
    from rich.console import Console

    from efficientllava.report.comparison import read_rows
    from efficientllava.report.terminal import print_whole, rich_table

    console = Console()
    try:
        table = rich_table(read_rows(ARTIFACTS, parameters.methods, parameters.ratios))
    except UserError:
        return  # the flow has said so
    console.print()
    print_whole(console, table)
    page = ARTIFACTS / "report" / "report.html"
    lines = ["", f"The same with plots: {page}", *_links(parameters)]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _links(parameters: Parameters) -> list[str]:
    """The pages of the servers that were used and go on, and the way to the others."""
    root, tracking = Path.cwd(), parameters.tracking
    try:
        found = dict(pages(tracking, root, experiment_number(tracking, root)))
    except UserError as error:  # the run has ended well; only its links cannot be told
        return [f"MLflow's pages: {error}"]
    lines = [f"{what.capitalize()}: {address}" for what, address in found.items()]
    if missing := [what for what in KINDS if what not in found]:
        lines.append(f"{', '.join(missing).capitalize()}: `{SHOW}` prints their links")
    return lines
