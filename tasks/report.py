"""Stage `report`: the comparison of all models as tables and one HTML page, and its times apart.

In:  the record files of all stages, experiments/
Out: artifacts/report/ (table.md, table.csv, report.html: the same bytes for the same models),
     artifacts/report_timings/ (the same with times, and what report.html shows of them),
     artifacts/summary/ (metrics: a small file a model)
The tables and figures of experiments/ are on the page too, as far as they have been run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.runtime.stage import ARTIFACTS, Stage, run_stage

EXPERIMENTS = Path("experiments")
SHOWN: dict[str, Any] = {
    **dict.fromkeys(
        (
            "model",
            "proxy",
            "obs",
            "allocation",
            "finalize",
            "search",
            "sensitivity",
            "evaluation",
            "export",
        ),
        True,
    ),
    "machine": {"threads", "device"},
    **dict.fromkeys(("methods", "ratios"), True),
}
"""The parameters on the page, defaults included: those that change a result."""


def report(stage: Stage) -> None:
    """Write the tables, the page, the times and the summaries."""
    import yaml
    from rich.console import Console

    from efficientllava.report.decision.summary import write_summaries
    from efficientllava.report.page import write_report
    from efficientllava.report.terminal import print_whole, rich_table

    shown = stage.parameters.model_dump(mode="json", include=SHOWN)
    rows = write_report(
        ARTIFACTS,
        ARTIFACTS / "report",
        stage.parameters.methods,
        stage.parameters.ratios,
        parameters=yaml.safe_dump(shown, sort_keys=False, allow_unicode=True),
        experiments=EXPERIMENTS,
    )
    target = stage.parameters.tracking.champion_ratio
    write_summaries(
        ARTIFACTS / "summary", rows, stage.parameters.ratios[0] if target is None else target
    )
    print_whole(Console(), rich_table(rows))


if __name__ == "__main__":
    run_stage(report)
