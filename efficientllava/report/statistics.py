"""Means over seeds with standard errors, and paired differences between methods."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Mean:
    """Mean over seeds; the standard error is unknown (None) for a single seed."""

    value: float
    error: float | None
    n: int

    def told(self, decimals: int, scale: float = 1.0, sign: bool = False) -> str:
        """As "81.4 ± 0.3"."""
        form = f"{'+' if sign else ''}.{decimals}f"
        text = format(self.value * scale, form)
        return text if self.error is None else f"{text} ± {self.error * scale:.{decimals}f}"


def mean(values: Iterable[float]) -> Mean | None:
    """Mean with the standard error of the sample; None without values."""
    known = list(values)
    if not known:
        return None
    error = stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None
    return Mean(fmean(known), error, len(known))


def chosen(
    rows: Sequence[Row], method: str, ratio: float, calibration: str = "text_and_pairs"
) -> list[Row]:
    """The cells of a method at a ratio, one per seed; the calibration does not matter to dense."""
    return [
        row
        for row in rows
        if row["method"] == method
        and (method == "dense" or (row["ratio"], row["calibration"]) == (ratio, calibration))
    ]


def mean_of(rows: Sequence[Row], field: str) -> Mean | None:
    """Mean of a field over rows that have it."""
    return mean(row[field] for row in rows if row.get(field) is not None)


def differences(first: Sequence[Row], second: Sequence[Row], field: str) -> list[float]:
    """first - second, seed by seed, over the seeds that both have."""
    others = {row["seed"]: row[field] for row in second}
    return [row[field] - others[row["seed"]] for row in first if row["seed"] in others]


def told(value: Mean | None, decimals: int, scale: float = 1.0, sign: bool = False) -> str:
    """The mean as text, a dash for None."""
    return "–" if value is None else value.told(decimals, scale, sign)
