"""Gathers the record files of all stages into the report: tables, plot and page."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from efficientllava.errors import without_users
from efficientllava.files import read_json, replacing, write_text
from efficientllava.report.accuracy_latency import accuracy_latency_plot
from efficientllava.report.best_dense import TITLE, best_dense_table
from efficientllava.report.comparison import (
    Row,
    comma_separated,
    headline_runtime,
    markdown,
    read_rows,
    runtime_title,
    runtimes_of,
)
from efficientllava.report.html import Part, Picture, html_page
from efficientllava.report.plots import convergence_plot, policy_plot, sparsity_plot
from efficientllava.report.theme import DARK, LIGHT, Theme


def write_report(
    artifacts: Path,
    folder: Path,
    methods: Sequence[str],
    ratios: Sequence[float],
    parameters: str = "",
    experiments: Path | None = None,
) -> list[Row]:
    """Write table.md, table.csv, accuracy_latency.png and report.html.

    The same records give the same bytes.

    Args:
        artifacts: the folder that the stages write.
        folder: where the report goes, whole or not at all.
        parameters: the YAML of params.yaml, shown on the page.
        experiments: folder of finished tables and figures, shown on the page.

    Returns:
        the rows of the comparison, for a terminal's table.
    """
    artifacts = Path(artifacts)
    rows = read_rows(artifacts, methods, ratios)
    pictures = []
    if runtimes_of(rows):
        caption = (
            f"Accuracy against {runtime_title(headline_runtime(rows))} latency; bars are one "
            "standard error of the accuracy and the interval of the speed-up; hollow: no "
            "difference from dense."
        )
        pictures.append(
            _drawn(caption, lambda path, theme: accuracy_latency_plot(rows, path, theme=theme))
        )
    parts = [part for row in rows if (part := _part(artifacts, row)) is not None]
    if parameters:
        parts.append(Part("params.yaml", text=without_users(parameters)))
    if best := best_dense_table(artifacts, rows):
        parts.insert(0, Part(TITLE, markdown=best, open=True))
    tables = [] if experiments is None else _experiments(Path(experiments))
    page = html_page(rows, pictures, parts, _facts(artifacts, rows), tables)
    with replacing(Path(folder)) as temporary:
        temporary.mkdir()
        compared = f"\n{TITLE}:\n\n{best}" if best else ""
        write_text(temporary / "table.md", markdown(rows) + compared)
        write_text(temporary / "table.csv", comma_separated(rows))
        accuracy_latency_plot(rows, temporary / "accuracy_latency.png")
        write_text(temporary / "report.html", page)
    return rows


def read_history(path: Path) -> list[dict[str, Any]]:
    """Rows of a search's history.jsonl, in the order of evaluation."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def _experiments(folder: Path) -> list[Part]:
    """The tables and figures that `make table1` ... have written, each with its plot."""
    parts = []
    for table in sorted(folder.glob("*/table.md")):
        title, _, text = table.read_text(encoding="utf-8").partition("\n")
        plot = (table.parent / "plot.png").read_bytes()
        text = text.replace("![plot](plot.png)", "")
        title = title.removeprefix("# ")
        parts.append(Part(title, [Picture(title, plot, plot)], markdown=text))
    return parts


def _drawn(caption: str, draw: Callable[[Path, Theme], None]) -> Picture:
    with tempfile.TemporaryDirectory() as folder:
        images = []
        for theme in (LIGHT, DARK):
            path = Path(folder) / "plot.png"
            draw(path, theme)
            images.append(path.read_bytes())
    return Picture(caption, *images)


def _part(artifacts: Path, row: Row) -> Part | None:
    """The plots of one pruned model, as far as its records exist."""
    name = f"{row.method}-{row.ratio:g}"
    pictures = []
    history_file = artifacts / "search" / name / "history.jsonl"
    policy_file = artifacts / "search" / name / "policy.json"
    pruning_file = artifacts / "pruned" / name / "pruning.json"
    if history_file.exists() and len(history := read_history(history_file)) > 1:
        caption = "The search, round by round, against the uniform policy on the same objective."
        pictures.append(
            _drawn(caption, lambda path, theme: convergence_plot(history, path, theme=theme))
        )
    if policy_file.exists() and (record := read_json(policy_file))["allocation"] == "search":
        caption = f"Share of zeros per matrix; neutral is the target {row.ratio:g}."
        policy = record["policy"]
        pictures.append(
            _drawn(caption, lambda path, theme: policy_plot(policy, path, row.ratio, theme=theme))
        )
    if pruning_file.exists():
        pruning = read_json(pruning_file)
        caption = "What the final model holds, counted in its weights."
        pictures.append(
            _drawn(caption, lambda path, theme: sparsity_plot(pruning, path, theme=theme))
        )
    return Part(row.name, pictures) if pictures else None


def _facts(artifacts: Path, rows: Sequence[Row]) -> dict[str, str]:
    """Machine and setting of the measurements, from the first export that has them."""
    facts: dict[str, str] = {}
    questions = next((row.score.n for row in rows if row.score is not None), None)
    if questions is not None:
        facts["test questions"] = str(questions)
    for path in sorted((artifacts / "export").glob("*/export.json")):
        record = read_json(path)
        for name in ("threads", "prompt_tokens", "context", "speedup_coverage"):
            if name in record:
                facts[name.replace("_", " ")] = str(record[name])
        facts.update({name: str(value) for name, value in record.get("machine", {}).items()})
        for name, row in record["runtimes"].items():
            if not row.get("available") and "reason" in row:
                facts[runtime_title(name)] = f"not measured: {row['reason']}"
        break
    for path in sorted((artifacts / "export").glob("*/export.json")):
        if (warning := read_json(path).get("warning")) is not None:
            facts[f"warning, {path.parent.name}"] = warning
    return facts
