"""The tables of a comparison: differences to uniform, their errors, cost; then to one method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import nan, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from bench.allocation.cells import rows_of

Cells = dict[tuple[str, float, int], dict[str, Any]]
OURS = "efficientllava_plus"


def table(results: Path) -> str:
    """Markdown: two tables for all cells of the same settings.

    The first has the difference of each method's held-out loss to that of uniform SparseGPT, and
    the share of the gap between uniform and dense that it closes; the second the difference of
    `efficientllava_plus` to each. Both are paired by draw: the error is that of the mean over
    draws, or over test segments where there is one draw.
    """
    by_settings: dict[str, list[dict[str, Any]]] = {}
    for row in rows_of(results):
        settings = ", ".join(f"{name} {value}" for name, value in row["settings"].items())
        by_settings.setdefault(settings, []).append(row)
    parts = []
    for settings, rows in by_settings.items():
        parts += [settings, _to_uniform(rows)]
        if any(row["method"] == OURS for row in rows):
            parts.append(_to_ours(rows))
    return "\n\n".join(parts)


def _to_uniform(rows: Sequence[dict[str, Any]]) -> str:
    cells = _cells(rows)
    dense = next((row["nll"] for row in rows if row["method"] == "dense"), None)
    levels = "" if dense is None else f" (dense {dense:.3f})"

    def cell(method: str, ratio: float) -> str:
        pairs = _pairs(cells, method, "uniform", ratio)
        if not pairs:
            return "–"
        if method == "uniform":
            return f"{fmean([row['nll'] for row, _ in pairs]):.3f}"
        apart, error = difference(pairs)
        told = f"{apart:+.4f} ± {error:.4f}"
        if dense is None:
            return told
        gap = fmean([uniform["nll"] for _, uniform in pairs]) - dense
        return f"{told} ({-100 * apart / gap:.0f} %)"

    def more(method: str) -> str:
        mine = [row for (name, _, _), row in cells.items() if name == method]
        seconds = fmean([row["seconds_allocation"] for row in mine])
        tokens = fmean([row["tokens_allocation"] for row in mine]) / 1000
        return f" {_counts(cells, method)} | {seconds:,.0f} | {tokens:,.0f} k |"

    return _markdown(cells, f"method{levels}", cell, ("draws", "processor s", "tokens"), more)


def _to_ours(rows: Sequence[dict[str, Any]]) -> str:
    cells = _cells(rows)

    def cell(method: str, ratio: float) -> str:
        pairs = _pairs(cells, OURS, method, ratio)
        if method == OURS or not pairs:
            return "–"
        apart, error = difference(pairs)
        return f"{apart:+.4f} ± {error:.4f} ({len(pairs)})"

    return _markdown(cells, f"{OURS} against (draws)", cell)


def _markdown(
    cells: Cells,
    title: str,
    cell: Callable[[str, float], str],
    heads: Sequence[str] = (),
    more: Callable[[str], str] = lambda method: "",
) -> str:
    """A row for each method, a column for each ratio, and the columns of `heads` behind."""
    ratios = _ratios(cells)
    columns = [title, *(f"at {ratio:g}" for ratio in ratios), *heads]
    lines = [f"| {' | '.join(columns)} |", f"| --- |{' ---: |' * (len(columns) - 1)}"]
    for method in dict.fromkeys(name for name, _, _ in cells):
        found = " | ".join(cell(method, ratio) for ratio in ratios)
        lines.append(f"| {method} | {found} |{more(method)}")
    return "\n".join(lines)


def _cells(rows: Sequence[dict[str, Any]]) -> Cells:
    """All but the dense model's."""
    return {
        (row["method"], row["ratio"], row["draw"]): row for row in rows if row["method"] != "dense"
    }


def _ratios(cells: Cells) -> list[float]:
    return sorted({ratio for _, ratio, _ in cells})


def _draws(cells: Cells, method: str, ratio: float) -> dict[int, dict[str, Any]]:
    return {d: row for (name, r, d), row in sorted(cells.items()) if (name, r) == (method, ratio)}


def _counts(cells: Cells, method: str) -> str:
    """The draws at each ratio, once where they are equal."""
    counts = [str(len(_draws(cells, method, ratio))) for ratio in _ratios(cells)]
    return counts[0] if len(set(counts)) == 1 else ", ".join(counts)


def _pairs(
    cells: Cells, method: str, other: str, ratio: float
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The cells of two methods of the draws that both have."""
    others = _draws(cells, other, ratio)
    return [
        (row, others[draw]) for draw, row in _draws(cells, method, ratio).items() if draw in others
    ]


def difference(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> tuple[float, float]:
    """Mean of paired differences of segments, and its error: over draws, or segments of one."""
    by_draw = [
        [a - b for a, b in zip(one["segments"], other["segments"], strict=True)]
        for one, other in pairs
    ]
    means = [fmean(draw) for draw in by_draw]
    return fmean(means), _error(means if len(means) > 1 else by_draw[0])


def _error(values: Sequence[float]) -> float:
    """Standard error of the mean."""
    return stdev(values) / sqrt(len(values)) if len(values) > 1 else nan
