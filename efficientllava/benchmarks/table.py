"""Scores as one table for a terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from efficientllava.benchmarks.catalogue import Benchmark


def score_table(benchmark: Benchmark, scores: dict[str, Any]) -> Table:
    """All parts in percent with standard error and number of questions.

    The official numbers, rounded as the official script rounds, stand where there are any.
    """
    judge = scores.get("judge")
    title = benchmark.title
    if judge:
        title += f", judged by {', '.join(judge['models'] or [judge.get('asked', '')])}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("part")
    for heading in ("score %", "± s.e.", "n"):
        table.add_column(heading, justify="right")
    official = scores.get("official", {})
    for name, part in scores["breakdowns"].items():
        table.add_row(name, *_cells(benchmark, part, official.get(name)))
    whole = official.get("total", official.get("all"))
    if "correct" in scores:
        table.add_row("right", str(scores["correct"]), "", str(scores["n"]))
    table.add_row("all", *_cells(benchmark, scores, whole), style="bold")
    if len(official.get("runs", [])) > 1:
        runs = ", ".join(f"{value:.{benchmark.digits}f}" for value in official["runs"])
        table.add_row("runs", runs, f"std {official['std']:.{benchmark.digits}f}", "")
    return table


def _cells(benchmark: Benchmark, part: dict[str, Any], official: float | None) -> list[str]:
    if part["accuracy"] is None:
        return ["–", "–", str(part["n"])]
    value = 100 * part["accuracy"] if official is None else official
    error = f"{100 * part['standard_error']:.{benchmark.digits}f}"
    return [f"{value:.{benchmark.digits}f}", error, str(part["n"])]
