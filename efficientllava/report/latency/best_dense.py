"""The table of pruned models against the fastest dense time in any runtime of one precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efficientllava.files import read_json
from efficientllava.report.comparison import Row, markdown_table, runtime_title
from efficientllava.report.speedup import PHASES, speedup_of

TITLE = "Against the best dense runtime of the same precision"
DENSE_KERNEL = "our dense kernel"


def best_dense_table(artifacts: Path, rows: Sequence[Row]) -> str:
    """A Markdown table, a line for each model and runtime; empty where nothing was measured."""
    body = []
    for row in rows:
        path = artifacts / "export_metrics" / f"{row.method}-{row.ratio:g}.json"
        runtimes = read_json(path)["runtimes"] if path.is_file() else {}
        for name, timing in runtimes.items():
            cells = [_cell(timing, phase) for phase in PHASES]
            if any(cells):
                body.append([row.name, runtime_title(name), timing["precision"], *cells])
    if not body:
        return ""
    return markdown_table(["model", "runtime", "precision", *PHASES], body, "---")


def _cell(timing: dict[str, Any], phase: str) -> str:
    """As "slower ×0.80 (0.78–0.83), against dense ONNX Runtime"; empty if not measured."""
    speedup = speedup_of(timing, f"{phase}_speedup_over_best_dense")
    if speedup is None or f"{phase}_best_dense" not in timing:
        return ""
    runtime, _, variant = timing[f"{phase}_best_dense"].partition(", ")
    best = DENSE_KERNEL if variant else f"dense {runtime_title(runtime)}"
    return f"{speedup}, against {best}"
