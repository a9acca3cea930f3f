"""Gathers the record files of all stages into the report: tables and page, and the times apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from efficientllava.errors import without_users
from efficientllava.files import read_json, replacing, write_text
from efficientllava.report.comma_separated import comma_separated
from efficientllava.report.comparison import Row, markdown, read_rows
from efficientllava.report.html import Part, Picture, drawn, html_page
from efficientllava.report.latency.section import SCRIPT, write_timings
from efficientllava.report.plots import convergence_plot, policy_plot, sparsity_plot


def write_report(
    artifacts: Path,
    folder: Path,
    methods: Sequence[str],
    ratios: Sequence[float],
    parameters: str = "",
    experiments: Path | None = None,
) -> list[Row]:
    """Write table.md, table.csv and report.html, and the times into a folder beside them.

    Models with the same bytes give a report with the same bytes: times are different ones whenever
    they are measured, so they lie in `FOLDER_timings`, from where the page shows them.

    Args:
        artifacts: the folder that the stages write.
        folder: where the report goes, whole or not at all.
        parameters: the YAML of params.yaml, shown on the page.
        experiments: folder of finished tables and figures, shown on the page.

    Returns:
        the rows of the comparison, for a terminal's table.
    """
    artifacts, folder = Path(artifacts), Path(folder)
    timed = read_rows(artifacts, methods, ratios)
    timings = folder.with_name(f"{folder.name}_timings")
    rows = [replace(row, latencies={}) for row in timed]
    parts = [part for row in rows if (part := _part(artifacts, row)) is not None]
    if parameters:
        parts.append(Part("params.yaml", text=without_users(parameters)))
    tables = [] if experiments is None else _experiments(Path(experiments))
    page = html_page(rows, parts, _facts(rows), tables, f"../{timings.name}/{SCRIPT}")
    with replacing(folder) as temporary:
        temporary.mkdir()
        write_text(temporary / "table.md", markdown(rows))
        write_text(temporary / "table.csv", comma_separated(rows))
        write_text(temporary / "report.html", page)
    write_timings(artifacts, timings, timed)
    return timed


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


def _facts(rows: Sequence[Row]) -> dict[str, str]:
    questions = next((row.score.n for row in rows if row.score is not None), None)
    return {} if questions is None else {"test questions": str(questions)}


def _part(artifacts: Path, row: Row) -> Part | None:
    """The plots of one pruned model, as far as its records exist."""
    name = f"{row.method}-{row.ratio:g}"
    pictures = []
    history_file = artifacts / "search" / name / "history.jsonl"
    policy_file = artifacts / "search" / name / "policy.json"
    pruning_file = artifacts / "pruned" / name / "pruning.json"
    if history_file.exists() and len(history := read_history(history_file)) > 1:
        caption = "The candidates, round by round, against the uniform policy by the same measure."
        pictures.append(
            drawn(caption, lambda path, theme: convergence_plot(history, path, theme=theme))
        )
    policy = read_json(policy_file)["policy"] if policy_file.exists() else {}
    if len(set(policy.values())) > 1:
        caption = f"Share of zeros per matrix; neutral is the target {row.ratio:g}."
        pictures.append(
            drawn(caption, lambda path, theme: policy_plot(policy, path, row.ratio, theme=theme))
        )
    if pruning_file.exists():
        pruning = read_json(pruning_file)
        caption = "What the final model holds, counted in its weights."
        pictures.append(
            drawn(caption, lambda path, theme: sparsity_plot(pruning, path, theme=theme))
        )
    return Part(row.name, pictures) if pictures else None
