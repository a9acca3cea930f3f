"""The plots of docs/results.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bench.cells import MATCHED
from bench.tables import methods_of, ratios_of
from efficientllava.report.statistics import Row, chosen, mean, mean_of
from efficientllava.report.theme import LIGHT, figure, marker, quiet

MEASURES = (
    ("accuracy", "accuracy %", 100.0),
    ("answer_nll", "answer loss", 1.0),
    ("text_loss", "held-out text loss", 1.0),
)


def comparison_plot(rows: Sequence[Row], path: Path) -> None:
    """Accuracy, answer loss and text loss over the ratio, a line per method."""
    methods = [name for name in methods_of(rows) if name not in ("dense", MATCHED)]
    ratios = ratios_of(rows)
    step = 0.007 * min((b - a for a, b in zip(ratios, ratios[1:], strict=False)), default=1.0) / 0.1
    with figure(path, LIGHT, 13.5, 4.4, "Methods by ratio: mean and standard error") as made:
        for axes, (field, label, scale) in zip(made.subplots(1, 3), MEASURES, strict=True):
            quiet(axes, LIGHT)
            axes.set_title(label, loc="left")
            dense = mean_of(chosen(rows, "dense", 0.0), field)
            if dense is not None:
                axes.axhline(dense.value * scale, color=LIGHT.ink, linewidth=1.2, label="dense")
            for index, method in enumerate(methods):
                # side by side, so that no error bar hides another
                shift = (index - (len(methods) - 1) / 2) * step
                cells = [chosen(rows, method, ratio) for ratio in ratios]
                _line(axes, ratios, cells, field, scale, method, shift)
            axes.set_xticks(ratios)
            axes.set_xlabel("target ratio of zeros")
        handles, labels = made.axes[0].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside lower center", ncols=4)


def calibration_plot(rows: Sequence[Row], path: Path) -> None:
    """What calibrating on image-text pairs as well changes, for uniform OBS."""
    ratios = ratios_of(rows)
    series = (
        ("magnitude", "text_and_pairs", "magnitude (none)", LIGHT.colour("magnitude"), 0.0),
        ("sparsegpt", "text", "OBS, text", LIGHT.series[5], -0.004),
        ("sparsegpt", "text_and_pairs", "OBS, text + image-text", LIGHT.series[1], 0.004),
    )
    with figure(path, LIGHT, 13.5, 4.2, "What uniform OBS is calibrated on") as made:
        for axes, (field, label, scale) in zip(made.subplots(1, 3), MEASURES, strict=True):
            quiet(axes, LIGHT)
            axes.set_title(label, loc="left")
            for method, calibration, name, colour, shift in series:
                cells = [chosen(rows, method, ratio, calibration) for ratio in ratios]
                _line(axes, ratios, cells, field, scale, name, shift, colour)
            axes.set_xticks(ratios)
            axes.set_xlabel("target ratio of zeros")
        handles, labels = made.axes[0].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside lower center", ncols=3)


def _line(
    axes: Axes,
    ratios: Sequence[float],
    cells: Sequence[Sequence[Row]],
    field: str,
    scale: float,
    label: str,
    shift: float,
    colour: str | None = None,
) -> None:
    found = [
        (ratio, value)
        for ratio, rows in zip(ratios, cells, strict=True)
        if (value := mean_of(rows, field)) is not None
    ]
    if found:
        axes.errorbar(
            [ratio + shift for ratio, _ in found],
            [value.value * scale for _, value in found],
            yerr=[(value.error or 0.0) * scale for _, value in found],
            color=colour or LIGHT.colour(label),
            marker=marker(label),
            markersize=6,
            linewidth=1.4,
            label=label,
        )


def search_plot(rows: Sequence[Row], path: Path) -> None:
    """Best risk below the uniform policy's, round by round, mean over seeds."""
    ratios = ratios_of(rows)
    with figure(path, LIGHT, 8.5, 4.0, "Search: best risk - risk of uniform") as made:
        axes = made.subplots()
        quiet(axes, LIGHT)
        axes.axhline(0.0, color=LIGHT.ink, linewidth=1.0)
        for index, ratio in enumerate(ratios):
            found = chosen(rows, "efficientllava", ratio)
            if not found:
                continue
            rounds = min(len(row["search"]["best_risks"]) for row in found)
            points = [
                mean(
                    row["search"]["best_risks"][number] - row["search"]["uniform_risk"]
                    for row in found
                )
                for number in range(rounds)
            ]
            known = [point for point in points if point is not None]
            axes.errorbar(
                [number + 1 + 0.03 * (index - len(ratios) / 2) for number in range(rounds)],
                [point.value for point in known],
                yerr=[point.error or 0.0 for point in known],
                color=LIGHT.sequential()(0.25 + 0.75 * index / max(len(ratios) - 1, 1)),
                marker="o",
                markersize=4,
                linewidth=1.6,
                label=f"ratio {ratio:g}",
            )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("round (efficientllava; below 0 is better than uniform)")
        axes.legend()
