"""Accuracy against latency as measured (figure 1 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from efficientllava.report.comparison import Row, headline_runtime, runtime_title
from efficientllava.report.speedup import Speedup
from efficientllava.report.theme import LIGHT, Theme, figure, hollow, marker, quiet


def accuracy_latency_plot(
    rows: Sequence[Row], path: Path, runtime: str | None = None, theme: Theme = LIGHT
) -> None:
    """Accuracy with its standard error over prefill and decode latency, a series per method.

    Latencies have the interval of their speed-up, at the dense model's time of the same run; a
    hollow marker is a model that shows no difference from dense.

    Without any latency of the runtime the plot says so instead of staying empty.

    Args:
        rows: of the comparison.
        path: PNG to write.
        runtime: a runtime's name; None for the first that was measured.
    """
    runtime = runtime or headline_runtime(rows)
    measured = [row for row in rows if row.score is not None and runtime in row.latencies]
    title = f"Accuracy against latency ({runtime_title(runtime)})"
    with figure(path, theme, 10.5, 4.2, title) as made:
        if not measured:
            axes = made.subplots()
            axes.set_axis_off()
            axes.text(0.5, 0.5, "no latency was measured", ha="center", color=theme.soft)
            return
        panels: list[Axes] = list(made.subplots(1, 2, sharey=True))
        for axes, phase in zip(panels, ("prefill", "decode"), strict=True):
            quiet(axes, theme)
            axes.grid(axis="x", color=theme.grid, linewidth=0.8)
            axes.set_xlabel(f"{phase}, median ms (left is faster; hollow: no difference)")
            for method in dict.fromkeys(row.method for row in measured):
                _series(
                    axes, [row for row in measured if row.method == method], runtime, phase, theme
                )
            axes.margins(x=0.12, y=0.12)
        panels[0].set_ylabel("accuracy %")
        handles, labels = panels[0].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))


def _series(axes: Axes, rows: Sequence[Row], runtime: str, phase: str, theme: Theme) -> None:
    scores = [row.score for row in rows if row.score is not None]
    times = [getattr(row.latencies[runtime], f"{phase}_ms") for row in rows]
    method = rows[0].method
    speedups = [row.latencies[runtime].speedup(phase) for row in rows]
    axes.errorbar(
        times,
        [100 * score.accuracy for score in scores],
        xerr=np.transpose([_spread(*pair) for pair in zip(times, speedups, strict=True)]),
        yerr=[100 * score.standard_error for score in scores],
        color=theme.colour(method),
        marker=marker(method),
        markersize=11 if method == "dense" else 8,
        markeredgecolor=theme.surface,
        linewidth=1.2,
        elinewidth=1.2,
        label=method,
    )
    for row, time, score, speedup in zip(rows, times, scores, speedups, strict=True):
        if speedup is not None and speedup.factor is None:
            hollow(axes, time, 100 * score.accuracy, method, theme)
        if method != "dense":
            axes.annotate(
                f"{row.ratio:g}",
                (time, 100 * score.accuracy),
                xytext=(7, 5),
                textcoords="offset points",
                fontsize=8,
                color=theme.soft,
            )


def _spread(time: float, speedup: Speedup | None) -> tuple[float, float]:
    """How far a latency reaches to the left and right, by the ends of its speed-up's interval."""
    if speedup is None or speedup.high == inf:
        return 0.0, 0.0
    dense = time * speedup.ratio
    return max(time - dense / speedup.high, 0.0), max(dense / speedup.low - time, 0.0)
