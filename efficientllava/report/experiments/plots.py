"""Plots of the experiments: means over seeds with standard errors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from efficientllava.report.experiments.statistics import Mean
from efficientllava.report.theme import (
    LIGHT,
    Theme,
    figure,
    hollow,
    marker,
    quiet,
    readable_on,
)

Key = tuple[str, float]


def accuracy_by_method_plot(
    accuracies: Mapping[Key, Mean], path: Path, title: str, theme: Theme = LIGHT
) -> None:
    """Accuracy in per cent over the ratio, a series per method; dense as a line.

    Methods at one ratio stand side by side. Those of one method under several settings
    ("sparsegpt text") share its colour.

    Args:
        accuracies: (method, ratio) -> per cent.
    """
    ratios = {ratio for method, ratio in accuracies if method != "dense"}
    with figure(path, theme, 7.5, 4.2, title) as made:
        axes = made.subplots()
        quiet(axes, theme)
        position = 0
        styles: dict[str, int] = {}
        for method in dict.fromkeys(method for method, _ in accuracies):
            points = {ratio: value for (name, ratio), value in accuracies.items() if name == method}
            if method == "dense":
                axes.axhline(points[0.0].value, color=theme.ink, linewidth=1, label="dense")
                continue
            position += 1
            name = method.partition(" ")[0]
            styles[name] = style = styles.get(name, -1) + 1
            axes.errorbar(
                list(points) if len(ratios) > 1 else [position],
                [value.value for value in points.values()],
                yerr=[value.error or 0.0 for value in points.values()],
                color=theme.colour(name),
                marker=marker(name),
                markersize=8,
                markeredgecolor=theme.surface,
                linestyle=("-", "--", ":")[style % 3],
                linewidth=1.2,
                label=method,
            )
        if len(ratios) > 1:
            axes.set_xlabel("target ratio")
        else:
            axes.set_xticks([])
            axes.set_xlim(0.3, position + 0.7)
            axes.set_xlabel(f"target ratio {', '.join(f'{ratio:g}' for ratio in ratios)}")
        axes.set_ylabel("accuracy %")
        made.legend(loc="outside lower center", ncols=3, fontsize=8.5)


def trade_off_plot(
    accuracies: Mapping[Key, Mean],
    milliseconds: Mapping[Key, float],
    path: Path,
    title: str,
    runtime: str,
    theme: Theme = LIGHT,
    same: Collection[Key] = (),
) -> None:
    """Figure 1: accuracy over the prefill latency in a runtime, a series per method.

    Args:
        runtime: its title.
        same: models that show no difference from dense; their markers are hollow.
    """
    measured = [key for key in accuracies if key in milliseconds]
    with figure(path, theme, 7.5, 4.4, title) as made:
        axes = made.subplots()
        if not measured:
            axes.set_axis_off()
            axes.text(0.5, 0.5, "no latency was measured", ha="center", color=theme.soft)
            return
        quiet(axes, theme)
        for method in dict.fromkeys(method for method, _ in measured):
            keys = [key for key in measured if key[0] == method]
            axes.errorbar(
                [milliseconds[key] for key in keys],
                [accuracies[key].value for key in keys],
                yerr=[accuracies[key].error or 0.0 for key in keys],
                color=theme.colour(method),
                marker=marker(method),
                markersize=11 if method == "dense" else 8,
                markeredgecolor=theme.surface,
                linewidth=1.2,
                label=method,
            )
            for key in keys:
                if key in same:
                    hollow(axes, milliseconds[key], accuracies[key].value, method, theme)
                if method != "dense":
                    axes.annotate(
                        f"{key[1]:g}",
                        (milliseconds[key], accuracies[key].value),
                        xytext=(7, 5),
                        textcoords="offset points",
                        fontsize=8,
                        color=theme.soft,
                    )
        axes.set_xlabel(f"{runtime} prefill, median ms (left is faster; hollow: no difference)")
        axes.set_ylabel("accuracy %")
        axes.margins(x=0.12, y=0.12)
        made.legend(loc="outside lower center", ncols=3, fontsize=8.5)


def grid_plot(
    accuracies: Mapping[tuple[float, float], Mean], path: Path, title: str, theme: Theme = LIGHT
) -> None:
    """Figure 3: accuracy over segments (down) and their length (across) as a map with numbers."""
    counts = sorted({count for count, _ in accuracies})
    lengths = sorted({length for _, length in accuracies})
    with figure(path, theme, 1.9 + 1.3 * len(lengths), 1.6 + 0.7 * len(counts), title) as made:
        axes = made.subplots()
        values = [
            [accuracies[n, s].value if (n, s) in accuracies else float("nan") for s in lengths]
            for n in counts
        ]
        known = [mean.value for mean in accuracies.values()]
        low, high = min(known), max(known)
        ramp = theme.sequential()
        axes.imshow(values, cmap=ramp, aspect="auto", vmin=low, vmax=high)
        axes.set_xticks(range(len(lengths)), [f"{length:g}" for length in lengths])
        axes.set_yticks(range(len(counts)), [f"{count:g}" for count in counts])
        axes.set_xlabel("tokens in a segment (s)")
        axes.set_ylabel("segments (n)")
        axes.tick_params(length=0)
        for down, count in enumerate(counts):
            for across, length in enumerate(lengths):
                if (mean := accuracies.get((count, length))) is not None:
                    shade = (mean.value - low) / (high - low) if high > low else 0.0
                    axes.text(
                        across,
                        down,
                        mean.formatted(1),
                        ha="center",
                        va="center",
                        fontsize=8.5,
                        color=readable_on(ramp(shade)),
                    )
