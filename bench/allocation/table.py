"""The table of a comparison: mean over draws, paired errors, cost."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Any

from bench.allocation.cells import rows_of

Cells = dict[tuple[str, float, int], dict[str, Any]]


def table(results: Path) -> str:
    """Markdown: one table for each ratio.

    A difference to uniform is paired over test segments; its error is that of the mean over draws,
    or over segments where there is one draw. The gap is what uniform loses to the dense model.
    """
    rows = rows_of(results)
    cells: Cells = {(row["method"], row["ratio"], row["draw"]): row for row in rows}
    dense = next((row["nll"] for row in rows if row["method"] == "dense"), None)
    parts = []
    for ratio in sorted({row["ratio"] for row in rows if row["method"] != "dense"}):
        methods = list(dict.fromkeys(r["method"] for r in rows if r["ratio"] == ratio))
        methods = [method for method in methods if method != "dense"]
        lines = [
            f"ratio {ratio:g}" + ("" if dense is None else f" (dense {dense:.4f})"),
            "",
            "| method | draws | held-out nll | to uniform | gap closed % | zeros % | processor s: "
            "allocation | pruning | tokens forward |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        found = [_line(cells, method, ratio, dense) for method in methods]
        parts.append("\n".join([*lines, *found]))
    return "\n\n".join(parts)


def _line(cells: Cells, method: str, ratio: float, dense: float | None) -> str:
    mine = {d: row for (name, r, d), row in cells.items() if (name, r) == (method, ratio)}
    pairs = [
        (row, cells["uniform", ratio, draw])
        for draw, row in mine.items()
        if ("uniform", ratio, draw) in cells
    ]
    nll = _mean([row["nll"] for row in mine.values()])
    told, closed = "", ""
    if pairs and method != "uniform":
        apart, error = difference(pairs)
        told = f"{apart:+.4f} ± {error:.4f}"
        if dense is not None:
            gap = _mean([uniform["nll"] for _, uniform in pairs]) - dense
            closed = f"{-100 * apart / gap:.1f}"
    zeros = _mean([100 * row["sparsity"] for row in mine.values()])
    costs = [
        _mean([row[name] for row in mine.values()])
        for name in ("seconds_allocation", "seconds_pruning", "tokens_allocation")
    ]
    cost = f"{costs[0]:.0f} | {costs[1]:.0f} | {costs[2]:,.0f}"
    return f"| {method} | {len(mine)} | {nll:.4f} | {told} | {closed} | {zeros:.4f} | {cost} |"


def difference(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> tuple[float, float]:
    """Mean of paired differences of segments, and its error: over draws, or segments of one."""
    by_draw = [
        [a - b for a, b in zip(one["segments"], other["segments"], strict=True)]
        for one, other in pairs
    ]
    means = [_mean(draw) for draw in by_draw]
    return _mean(means), _error(means if len(means) > 1 else by_draw[0])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _error(values: Sequence[float]) -> float:
    """Standard error of the mean."""
    if len(values) < 2:
        return float("nan")
    middle = _mean(values)
    return sqrt(sum((v - middle) ** 2 for v in values) / (len(values) - 1) / len(values))
