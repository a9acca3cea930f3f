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


def colour_of(record: ModelRecord) -> str:
    """The colour of a model's method in all plots; MLflow chooses the same one for several runs."""
    from efficientllava.report.theme import LIGHT  # imports matplotlib

    return LIGHT.colour(record.method)


def shared_view(summaries: Iterable[Summary]) -> dict[str, Any]:
    """The state of MLflow's page of runs: the summaries as columns of its table, and as charts."""
    names = list(dict.fromkeys(name for each in summaries for name in each.metrics))
    columns = ["attributes.`Duration`", "params.`method`", "params.`ratio`"]
    columns += [f"metrics.`{name}`" for name in names]
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
        "compareRunSections": [
            _section("decision", "Decision", columns=1, height=660),
            _section("charts", "Charts", columns=3, height=300),
        ],
        "compareRunCharts": [
            _chart(
                "decision",
                "differences",
                type="DIFFERENCE",
                chartName="Metrics, then parameters",
                compareGroups=["Model metrics", "Parameters"],
                showChangeFromBaseline=False,
                showDifferencesOnly=True,
                baselineColumnUuid="",
            ),
            *(_chart("charts", name, type="BAR", metricKey=name) for name in names),
        ],
        "isAccordionReordered": True,
    }


def _section(key: str, name: str, columns: int, height: int) -> dict[str, Any]:
    """A section of MLflow's charts; the height in pixels is of each chart."""
    return {
        "uuid": key,
        "name": name,
        "display": True,
        "isReordered": True,
        "columns": columns,
        "cardHeight": height,
    }


def _chart(section: str, key: str, **settings: Any) -> dict[str, Any]:
    """A chart of a section."""
    fixed = {"uuid": key, "metricSectionId": section, "isGenerated": False, "deleted": False}
    return {**fixed, **settings}
