"""The folder beside the report with what differs from run to run: times and the machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from efficientllava.files import read_json, replacing, write_text
from efficientllava.report.comma_separated import comma_separated
from efficientllava.report.comparison import (
    Row,
    headline_runtime,
    markdown,
    runtime_title,
    runtimes_of,
)
from efficientllava.report.html import Part, drawn, timings_script, timings_section
from efficientllava.report.latency.accuracy_latency import accuracy_latency_plot
from efficientllava.report.latency.best_dense import TITLE, best_dense_table

SCRIPT = "timings.js"
"""The file that the report's page shows the times from."""


def write_timings(artifacts: Path, folder: Path, rows: Sequence[Row]) -> None:
    """Write table.md, table.csv, accuracy_latency.png and the script, whole or not at all.

    Args:
        artifacts: the folder that the stages write.
        rows: of the comparison, with latencies.
    """
    pictures = []
    if runtimes_of(rows):
        caption = (
            f"Accuracy against {runtime_title(headline_runtime(rows))} latency; bars are one "
            "standard error of the accuracy and the interval of the speed-up; hollow: no "
            "difference from dense."
        )
        pictures.append(
            drawn(caption, lambda path, theme: accuracy_latency_plot(rows, path, theme=theme))
        )
    best = best_dense_table(artifacts, rows)
    tables = [Part(TITLE, markdown=best, open=True)] if best else []
    section = timings_section(rows, pictures, tables, _facts(artifacts))
    with replacing(folder) as temporary:
        temporary.mkdir()
        write_text(
            temporary / "table.md", markdown(rows) + (f"\n{TITLE}:\n\n{best}" if best else "")
        )
        write_text(temporary / "table.csv", comma_separated(rows))
        accuracy_latency_plot(rows, temporary / "accuracy_latency.png")
        write_text(temporary / SCRIPT, timings_script(section))


def _facts(artifacts: Path) -> dict[str, str]:
    """Machine and setting of the measurements, from the first model that has them; warnings."""
    facts: dict[str, str] = {}
    records = {
        path.stem: read_json(path) for path in sorted((artifacts / "export_metrics").glob("*.json"))
    }
    for record in list(records.values())[:1]:
        for name in ("threads", "prompt_tokens", "context", "speedup_coverage"):
            if name in record:
                facts[name.replace("_", " ")] = str(record[name])
        facts.update({name: str(value) for name, value in record.get("machine", {}).items()})
        for name, row in record["runtimes"].items():
            if not row.get("available") and "reason" in row:
                facts[runtime_title(name)] = f"not measured: {row['reason']}"
    for model, record in records.items():
        if (warning := record.get("warning")) is not None:
            facts[f"warning, {model}"] = warning
    return facts
