"""The summary of every model: the few metrics by which runs and versions are compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from efficientllava.errors import UserError
from efficientllava.report.comparison import Row, read_rows
from efficientllava.report.decision.summary import Cost, Summary, summary
from flows.tracking.record import DENSE, ModelRecord
from tasks.runtime.stage import ARTIFACTS

VIEW = "summary"
"""Name of the shared view of the runs' table that shows the summaries."""
FITNESS = "search.fitness"
DIVERGENCE = "kl"
"""The fitness that is a divergence from the dense model: of that model itself it is 0."""


def cost_of(record: ModelRecord) -> Cost | None:
    """Seconds of the model's own stages together; None where none of them ran here."""
    if not record.costs:
        return None
    return Cost(
        sum(cost.wall_seconds for cost in record.costs),
        sum(cost.cpu_seconds for cost in record.costs),
    )


def summaries(root: Path, records: Sequence[ModelRecord]) -> dict[str, Summary]:
    """The summary of every model by its cell; nothing where the stages left no comparison.

    Args:
        root: the workspace.
    """
    pruned = [record for record in records if record.method != DENSE]
    methods = list(dict.fromkeys(record.method for record in pruned))
    ratios = list(dict.fromkeys(record.ratio for record in pruned))
    try:
        rows = read_rows(root / ARTIFACTS, methods, ratios)
    except UserError:  # the flow says so when it shows the comparison
        return {}
    by_model = {(row.method, f"{row.ratio:g}"): row for row in rows}
    found = {}
    for record in records:
        row: Row | None = by_model.get((record.method, f"{record.ratio:g}"))
        if row is not None:
            found[record.cell] = summary(row, rows, _dense_loss(pruned), cost_of(record))
    return found


def _dense_loss(pruned: Iterable[ModelRecord]) -> float | None:
    """The proxy loss of the dense model; None where no pruned model was measured beside it."""
    for record in pruned:
        if record.parameters.get(FITNESS, DIVERGENCE) == DIVERGENCE:
            return 0.0
        if (loss := record.metric("dense_nll")) is not None:
            return loss
    return None


def shared_view(metrics: Iterable[str]) -> dict[str, Any]:
    """The state of MLflow's table of runs that shows these metrics, and the method and ratio."""
    columns = ["attributes.`Duration`", "params.`method`", "params.`ratio`"]
    columns += [f"metrics.`{name}`" for name in metrics]
    return {
        "searchFilter": "attributes.status = 'FINISHED'",
        "orderByKey": "metrics.`summary/accuracy_percent`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "viewMaximized": True,
        "runListHidden": False,
        "isComparingRuns": False,
        "groupBy": None,
    }
