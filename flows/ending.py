"""What is shown when a run has ended: the comparison, and where to look."""

from __future__ import annotations

from efficientllava.errors import UserError
from efficientllava.parameters import Parameters
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
    console.print(
        f"\nThe same with plots: {ARTIFACTS / 'report' / 'report.html'}\n"
        f"Every run and version: mlflow ui --backend-store-uri {parameters.tracking.uri}\n"
        "Every stage and round:  prefect server start",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
