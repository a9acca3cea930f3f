"""Plots of one search and of one pruned model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.ticker import MaxNLocator

from efficientllava.errors import UserError
from efficientllava.report.theme import LIGHT, Theme, figure, quiet, readable_on
from efficientllava.report.trajectory import trajectory

EXPERTS = "experts."
"""Before the kind of a matrix that every expert of a block has."""
_KINDS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "qkv_proj",
    "o_proj",
    "out_proj",
    "gate_proj",
    "up_proj",
    "gate_up_proj",
    "down_proj",
    "fc1",
    "fc2",
)


def place_of(matrix: str) -> tuple[int, str]:
    """Decoder block and kind of a matrix: ("model...layers.3.self_attn.q_proj") -> (3, "q_proj").

    All experts of a block are of the same kinds: "experts.down_proj".

    Raises:
        UserError: the name has no number of a block in it.
    """
    parts = matrix.split(".")
    for part in parts:
        if part.isdigit():
            return int(part), f"{EXPERTS}{parts[-1]}" if "experts" in parts else parts[-1]
    raise UserError("holds no number of a decoder block", where=f"matrix name {matrix!r}")


def grid_of(values: Mapping[str, float | None]) -> tuple[list[int], list[str], np.ndarray]:
    """Arrange a value per matrix as blocks x kinds; NaN where a block has no such matrix.

    Returns:
        numbers of the blocks, names of the kinds, values [blocks, kinds]: of experts their mean.
    """
    places: dict[tuple[int, str], list[float]] = {}
    for name, value in values.items():
        places.setdefault(place_of(name), []).extend([] if value is None else [value])
    blocks = sorted({block for block, _ in places})
    kinds = sorted({kind for _, kind in places}, key=_order)
    means = [[fmean(places.get((block, kind)) or [np.nan]) for kind in kinds] for block in blocks]
    return blocks, kinds, np.array(means)


def _order(kind: str) -> tuple[int, str]:
    """Of the kinds, as the data flows; unknown ones last."""
    name = kind.removeprefix(EXPERTS)
    return (_KINDS.index(name) if name in _KINDS else len(_KINDS), kind)


def convergence_plot(
    history: Sequence[Mapping[str, Any]], path: Path, title: str = "", theme: Theme = LIGHT
) -> None:
    """Risk, loss and complexity of a search, round by round, against the uniform policy.

    The line of the best follows the best candidate so far (see `trajectory`). It may rise when the
    projector has moved: then only candidates measured with the new one count, as in the search.

    Args:
        history: rows of history.jsonl.
        path: PNG to write.
    """
    if not history:
        raise UserError("the search's history is empty", where=str(path))
    rounds, best, mean, uniform = trajectory(history)
    with figure(path, theme, 11, 3.5, title or "Search: the best candidate of each round") as made:
        panels = (
            ("risk", "structural risk (lower is better)"),
            ("loss", "proxy loss"),
            ("complexity", "complexity: mean log norm ratio"),
        )
        for axes, (name, label) in zip(made.subplots(1, 3), panels, strict=True):
            quiet(axes, theme)
            axes.set_title(label, loc="left")
            axes.plot(rounds, mean[name], color=theme.soft, linewidth=1.5, label="mean of round")
            axes.plot(
                rounds,
                best[name],
                color=theme.series[2],
                linewidth=2.2,
                marker="o",
                markersize=4.5,
                label="best so far",
            )
            if uniform is not None:
                reference = [step[name] for step in uniform]
                axes.plot(
                    rounds,
                    reference,
                    color=theme.series[5],
                    linewidth=1.6,
                    linestyle=(0, (5, 3)),
                    label="uniform",
                )
            axes.set_xlabel("round")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles, labels = made.axes[0].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside upper right", ncols=3)


def policy_plot(
    policy: Mapping[str, float],
    path: Path,
    ratio: float | None = None,
    title: str = "",
    theme: Theme = LIGHT,
) -> None:
    """Heat map of a policy: the share of zeros of each matrix, block by kind of matrix.

    Args:
        policy: matrix name -> level, as in policy.json.
        path: PNG to write.
        ratio: target; its level is neutral, less is blue, more is red.
    """
    blocks, kinds, grid = grid_of(policy)
    centre = float(np.nanmean(grid)) if ratio is None else ratio
    reach = max(float(np.nanmax(np.abs(grid - centre))), 0.05)
    norm = TwoSlopeNorm(centre, centre - reach, centre + reach)
    height = _height(blocks)
    with figure(path, theme, 7.2, height, title or "Policy: share of zeros per matrix") as made:
        axes = made.subplots()
        _heat_map(axes, blocks, kinds, grid, theme.diverging(), norm, "{:.2f}", theme)


def sparsity_plot(
    record: Mapping[str, Any], path: Path, title: str = "", theme: Theme = LIGHT
) -> None:
    """Achieved zeros and relative output error of every matrix of a pruned model.

    Args:
        record: pruning.json.
        path: PNG to write.
    """
    matrices = record["matrices"]
    if not matrices:
        raise UserError("the pruning record names no matrix", where=str(path))
    shares = {row["name"]: row["zeros"] / row["size"] for row in matrices}
    errors = {row["name"]: row.get("relative_error") for row in matrices}
    blocks, kinds, grid = grid_of(shares)
    _, _, error_grid = grid_of(errors)
    heading = title or f"{record['method']} at {record['ratio']}: what was pruned"
    with figure(path, theme, 13, _height(blocks), heading) as made:
        left, right = made.subplots(1, 2)
        _heat_map(left, blocks, kinds, grid, theme.sequential(), _range_of(grid), "{:.3f}", theme)
        left.set_title(f"achieved zeros (all: {record['achieved_sparsity']:.4f})", loc="left")
        _heat_map(
            right,
            blocks,
            kinds,
            error_grid,
            theme.sequential(),
            _range_of(error_grid),
            "{:.3f}",
            theme,
        )
        right.set_title("relative output error on the calibration data", loc="left")


def _height(blocks: Sequence[int]) -> float:
    return 1.5 + 0.36 * max(len(blocks), 2)


def _range_of(grid: np.ndarray) -> Normalize:
    known = grid[~np.isnan(grid)]
    if not known.size:
        return Normalize(0.0, 1.0)
    low, high = float(known.min()), float(known.max())
    return Normalize(low, high) if high - low > 1e-9 else Normalize(low - 0.05, high + 0.05)


def _heat_map(
    axes: Axes,
    blocks: Sequence[int],
    kinds: Sequence[str],
    grid: np.ndarray,
    colours: matplotlib.colors.Colormap,
    norm: Normalize,
    form: str,
    theme: Theme,
) -> None:
    axes.pcolormesh(
        np.ma.masked_invalid(grid), cmap=colours, norm=norm, edgecolors=theme.surface, linewidth=2
    )
    axes.invert_yaxis()
    for (row, column), value in np.ndenumerate(grid):
        known = not np.isnan(value)
        axes.text(
            column + 0.5,
            row + 0.5,
            form.format(value) if known else "–",
            ha="center",
            va="center",
            fontsize=8.5,
            color=readable_on(colours(norm(value))) if known else theme.soft,
        )
    labels = [
        kind.removesuffix("_proj").removeprefix(EXPERTS)
        + ("\nof experts,\nmean" if kind.startswith(EXPERTS) else "")
        for kind in kinds
    ]
    axes.set_xticks(np.arange(len(kinds)) + 0.5, labels=labels)
    axes.set_yticks(np.arange(len(blocks)) + 0.5, labels=[str(block) for block in blocks])
    axes.set_ylabel("decoder block")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
