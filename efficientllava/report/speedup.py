"""How a speed-up is written: faster, slower, or "no difference measured", with its interval.

Everything that shows or logs a speed-up asks here: tables, page, plots, CSV, MLflow, DVC's metrics,
benches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from statistics import fmean
from typing import Any

NO_DIFFERENCE = "no difference measured"
NARROW = 0.1
"""An interval wider than this share of its middle is called wide (as in export/speed.py)."""
TOLD = "_told"
"""How names of speed-ups in words end."""
PHASES = ("prefill", "decode")
_TIMED = (
    *("prompt_tokens", "context", "threads", "repetitions", "clock", "machine", "warning"),
    "speedup_coverage",
)
_FACTORS = ("_speedup", "_speedup_over_best_dense", "_speedup_over_dense_kernel")


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
        """As "faster ×1.25", "slower ×0.80" or "no difference measured"."""
        if self.factor is None:
            return NO_DIFFERENCE
        return f"{'faster' if self.factor > 1 else 'slower'} ×{self.factor:.2f}"

    @property
    def interval(self) -> str:
        """As "(1.20–1.31)"; "(0.70–1.40, wide)" where other programs kept it from being narrow."""
        if self.high == inf:
            return "(no interval)"
        wide = self.high - self.low > NARROW * (self.low + self.high) / 2
        return f"({self.low:.2f}–{self.high:.2f}{', wide' if wide else ''})"

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
        """The pruned model's, from a runtime's part of the times."""
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


def speedup_of(timing: Mapping[str, Any], key: str) -> Speedup | None:
    """A speed-up in a runtime's part of the times, by its key; None where it is not there."""
    if key not in timing:
        return None
    ends = timing.get(f"{key}_interval")
    return Speedup(timing[key], *(() if ends is None else (ends["low"], ends["high"])))


def export_metrics(record: Mapping[str, Any]) -> dict[str, Any]:
    """What export_metrics/MODEL.json holds: times, speed-ups in words, the machine, bytes.

    Args:
        record: of `export_model`.
    """
    metrics: dict[str, Any] = {name: record[name] for name in _TIMED if name in record}
    metrics |= {"bytes": dict(record.get("bytes", {})), "runtimes": {}}
    for name, row in record["runtimes"].items():
        metrics["runtimes"][name] = told = dict(row)
        if not row["available"]:
            continue
        for phase in PHASES:
            told |= {
                f"{phase}_ms": row["pruned"][f"{phase}_ms"],
                f"{phase}_dense_ms": row["dense"][f"{phase}_ms"],
            }
            for key in (f"{phase}{factor}" for factor in _FACTORS):
                if (speedup := speedup_of(row, key)) is not None:
                    told[f"{key}{TOLD}"] = str(speedup)
    return metrics


def is_factor(name: str) -> bool:
    """Whether a number of an export is a speed-up without its interval: no fact to be logged."""
    return name.endswith(_FACTORS)
