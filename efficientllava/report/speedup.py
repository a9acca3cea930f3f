"""How a speed-up is written: a factor where the runs show one, otherwise "no difference".

Everything that shows or logs a speed-up asks here: tables, page, plots, CSV, MLflow, benches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from statistics import fmean
from typing import Any

NO_DIFFERENCE = "no difference"
PHASES = ("prefill", "decode")
_FACTORS = ("_speedup", "_speedup_over_best_dense")


@dataclass(frozen=True)
class Speedup:
    """dense / pruned with the interval that the runs leave open (docs/export.md).

    Attributes:
        ratio: of the medians; above 1 the pruned model is faster.
        low, high: ends of the interval; 0 and inf where too few runs give none.
    """

    ratio: float
    low: float = 0.0
    high: float = inf

    @property
    def factor(self) -> float | None:
        """The ratio; None where the interval, in the two decimals that are shown, holds 1."""
        return None if round(self.low, 2) <= 1 <= round(self.high, 2) else self.ratio

    @property
    def formatted(self) -> str:
        """As "×1.25", or "no difference"."""
        return NO_DIFFERENCE if self.factor is None else f"×{self.factor:.2f}"

    @property
    def interval(self) -> str:
        """As "(1.20–1.31)"."""
        return "(no interval)" if self.high == inf else f"({self.low:.2f}–{self.high:.2f})"

    def __str__(self) -> str:
        return f"{self.formatted} {self.interval}"


@dataclass(frozen=True)
class Latency:
    """Medians of one runtime in ms; speed-ups against dense, measured in the same run.

    The intervals of the speed-ups are None where too few runs give none.
    """

    prefill_ms: float
    decode_ms: float
    prefill_speedup: float | None = None
    decode_speedup: float | None = None
    prefill_interval: tuple[float, float] | None = None
    decode_interval: tuple[float, float] | None = None

    @classmethod
    def pruned(cls, timing: Mapping[str, Any]) -> Latency:
        """The pruned model's, from a runtime's part of export.json."""
        intervals = (timing.get(f"{phase}_speedup_interval") for phase in PHASES)
        return cls(
            *(timing["pruned"][f"{phase}_ms"] for phase in PHASES),
            *(timing[f"{phase}_speedup"] for phase in PHASES),
            *(None if value is None else (value["low"], value["high"]) for value in intervals),
        )

    def speedup(self, phase: str) -> Speedup | None:
        """Of "prefill" or "decode"; None for the dense model."""
        ratio, interval = getattr(self, f"{phase}_speedup"), getattr(self, f"{phase}_interval")
        return None if ratio is None else Speedup(ratio, *(interval or ()))


def combined(speedups: Sequence[Speedup]) -> Speedup | None:
    """Of several measurements, one a seed: the mean ratio between the means of the ends.

    If every interval holds its true ratio, this one holds their mean. None without measurements.
    """
    if not speedups:
        return None
    return Speedup(
        fmean(value.ratio for value in speedups),
        fmean(value.low for value in speedups),
        fmean(value.high for value in speedups),
    )


def is_factor(name: str) -> bool:
    """Whether a number of export.json is a speed-up without its interval: no fact to be logged."""
    return name.endswith(_FACTORS)
