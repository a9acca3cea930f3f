"""Colours and form of every plot, for light and dark surfaces; figures without global state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from efficientllava.files import replacing
from efficientllava.registry import METHODS as REGISTERED

METHODS: tuple[str, ...] = ("dense", *REGISTERED)
"""The methods in the order in which tables and legends show them."""

_OF_THE_PAPER = (
    "magnitude",
    "sparsegpt",
    "efficientllava",
    "auto_without_generalization",
    "no_evolution",
    "evolution_without_upper_bound",
)
_MARKERS: tuple[str | tuple[int, int, int], ...] = (
    "*",
    "s",
    "D",
    "o",
    "^",
    "v",
    "P",
    "X",
    "<",
    ">",
    "p",
    "h",
    "d",
    "H",
    "8",
    # stars of so many points; "+" and "x" have no face, only an edge in the colour of the surface
    (4, 1, 0),
    (6, 1, 0),
    (8, 1, 0),
    (3, 1, 0),
)
_DPI = 130


@dataclass(frozen=True)
class Theme:
    """Colours of a surface: `series` in a fixed order, ramps from `surface` outwards.

    Attributes:
        further: colours of the methods that the paper does not compare, in the order of METHODS.
    """

    surface: str
    ink: str
    soft: str
    grid: str
    series: tuple[str, ...]
    further: tuple[str, ...]
    ramp: tuple[str, ...]
    below: str
    middle: str
    above: str

    def colour(self, method: str) -> str:
        """The colour of a method, the same in every plot; dense has the ink's."""
        if method == "dense" or method not in METHODS:
            return self.ink
        if method in _OF_THE_PAPER:
            return self.series[_OF_THE_PAPER.index(method)]
        others = [name for name in METHODS if name != "dense" and name not in _OF_THE_PAPER]
        return self.further[others.index(method) % len(self.further)]

    def sequential(self) -> LinearSegmentedColormap:
        """Little to much, in one hue."""
        return LinearSegmentedColormap.from_list("sequential", list(self.ramp))

    def diverging(self) -> LinearSegmentedColormap:
        """Below, at and above a reference value."""
        return LinearSegmentedColormap.from_list("diverging", [self.below, self.middle, self.above])


LIGHT = Theme(
    surface="#ffffff",
    ink="#1c1c1a",
    soft="#5f5e58",
    grid="#e4e3dd",
    series=("#eda100", "#1baf7a", "#2a78d6", "#e87ba4", "#4a3aa7", "#e34948"),
    further=("#8a6d1f", "#00929f", "#6f6f68", "#a8477f", "#5b8a26", "#bb5a17"),
    ramp=("#eef4fc", "#9ec2f0", "#3f86db", "#184f95", "#0b2e5c"),
    below="#2a78d6",
    middle="#f1f0ea",
    above="#e34948",
)
DARK = Theme(
    surface="#1a1a19",
    ink="#f4f3ee",
    soft="#b5b3aa",
    grid="#383835",
    series=("#c98500", "#199e70", "#3987e5", "#d55181", "#9085e9", "#e66767"),
    further=("#c9a94a", "#35b9c4", "#a3a39b", "#d489b4", "#93bf5e", "#e0905a"),
    ramp=("#20242b", "#184f95", "#3987e5", "#86b6ef", "#dbe9fb"),
    below="#3987e5",
    middle="#383835",
    above="#e66767",
)


def marker(method: str) -> str | tuple[int, int, int]:
    """The marker of a method, so that colour is never the only sign."""
    return _MARKERS[METHODS.index(method) % len(_MARKERS)] if method in METHODS else "o"


@contextmanager
def figure(
    path: Path, theme: Theme, width: float, height: float, title: str = ""
) -> Iterator[Figure]:
    """Yield a figure in the theme that is written to `path` as PNG, whole or not at all.

    The same content gives the same bytes: the file carries no time and no version.
    """
    settings = {
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "text.color": theme.ink,
        "axes.edgecolor": theme.grid,
        "axes.labelcolor": theme.soft,
        "axes.facecolor": theme.surface,
        "axes.titlesize": 10.5,
        "axes.titlecolor": theme.ink,
        "xtick.color": theme.soft,
        "ytick.color": theme.soft,
        "legend.labelcolor": theme.ink,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(settings):
        made = Figure(figsize=(width, height), facecolor=theme.surface, layout="constrained")
        if title:
            made.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        yield made
        with replacing(Path(path)) as temporary:
            made.savefig(temporary, format="png", dpi=_DPI, metadata={"Software": None})


def quiet(axes: Axes, theme: Theme) -> None:
    """Leave only a faint horizontal grid and the lower axis."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def readable_on(colour: tuple[float, float, float, float]) -> str:
    """Black or white, whichever reads better on the colour."""
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if luminance > 0.179 else "#ffffff"


def hollow(axes: Axes, x: float, y: float, method: str, theme: Theme) -> None:
    """Empty a method's marker: the model shows no difference from dense."""
    axes.plot(
        [x],
        [y],
        marker=marker(method),
        markersize=8,
        markerfacecolor=theme.surface,
        markeredgecolor=theme.colour(method),
        zorder=5,
    )
