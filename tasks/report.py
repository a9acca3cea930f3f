"""Stage `report`: the comparison of all models as tables, a plot and one HTML page.

The tables and figures of experiments/ are on the page too, as far as they have been run.
"""

from __future__ import annotations

from pathlib import Path

from tasks.runtime.stage import ARTIFACTS, PARAMETERS, Stage, run_stage

EXPERIMENTS = Path("experiments")


def report(stage: Stage) -> None:
    """artifacts/* -> artifacts/report/{table.md, table.csv, accuracy_latency.png, report.html}."""
    from rich.console import Console

    from efficientllava.report.page import write_report
    from efficientllava.report.terminal import print_whole, rich_table

    rows = write_report(
        ARTIFACTS,
        ARTIFACTS / "report",
        stage.parameters.methods,
        stage.parameters.ratios,
        parameters=PARAMETERS.read_text(encoding="utf-8-sig"),
        experiments=EXPERIMENTS,
    )
    print_whole(Console(), rich_table(rows))


if __name__ == "__main__":
    run_stage(report)
