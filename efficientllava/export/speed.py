"""Times of models, dense and pruned in turns, and the machine they were measured on. No torch."""

from __future__ import annotations

import logging
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

PHASES = ("vision", "prefill", "decode")
WARM_UP = 3
COVERAGE = 0.99
"""Of the intervals of speed-ups: how often the true ratio lies inside."""
LOOKS = (1, 2, 4, 8)
"""How many times the repetitions are run at most, and where the intervals are looked at."""
LOOK_COVERAGE = 1 - (1 - COVERAGE) / len(LOOKS)
"""Of an interval at one look: all looks together leave out the true ratio as seldom as COVERAGE
says, whenever the runs end (Bonferroni)."""
NARROW = 0.1
"""Width of an interval, as a share of its ratio, at which the runs end."""
MOST_SECONDS = 60.0
"""After so long no further repetitions begin; the first ones always run to their end."""
INSTRUCTIONS = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "avx512_vbmi2", "amx_tile", "amx_int8", "amx_bf16",
)  # fmt: skip


Call = Callable[[], object]
"""One run of one phase of one model."""


@dataclass(frozen=True)
class Run:
    """Seconds of one run.

    Attributes:
        wall: by the clock.
        cpu: of the processor, all threads of this process together.
    """

    wall: float
    cpu: float


Runs = dict[str, list[Run]]


def interleaved(calls: Mapping[str, Call], repetitions: int, warm_up: int = WARM_UP) -> Runs:
    """Seconds of each run of each model, in turns: what slows the machine slows all alike.

    Args:
        calls: by name. The order is turned round at every repetition, so that none always runs
            in the other's cold cache.
    """
    names = list(calls)
    runs: Runs = {name: [] for name in names}
    for repetition in range(warm_up + repetitions):
        for name in names if repetition % 2 else names[::-1]:
            wall, cpu = time.perf_counter(), time.process_time()
            calls[name]()
            run = Run(time.perf_counter() - wall, time.process_time() - cpu)
            if repetition >= warm_up:
                runs[name].append(run)
    return runs


def clock_of(threads: int) -> str:
    """Which of a run's times decides: other programs change the processor time of one thread least,
    and with several threads it does not tell how long they wait for each other."""
    return "cpu" if threads == 1 else "wall"


def seconds_of(runs: Sequence[Run], clock: str) -> list[float]:
    """The times of runs by one clock, "cpu" or "wall"."""
    return [float(getattr(run, clock)) for run in runs]


def timed_until_narrow(calls: Mapping[str, Call], repetitions: int, clock: str) -> Runs:
    """`interleaved`, again and again until the intervals of dense / other are narrow, or LOOKS or
    MOST_SECONDS are used up."""
    started = time.perf_counter()
    runs = interleaved(calls, repetitions)
    for before, looks in zip(LOOKS, LOOKS[1:], strict=False):
        dense = seconds_of(runs["dense"], clock)
        others = [seconds_of(runs[name], clock) for name in calls if name != "dense"]
        if all(is_narrow(ratio_interval(dense, other, LOOK_COVERAGE)) for other in others):
            break
        if time.perf_counter() - started > MOST_SECONDS:
            break
        for name, more in interleaved(calls, repetitions * (looks - before), warm_up=0).items():
            runs[name] += more
    return runs


def is_narrow(interval: Mapping[str, float] | None) -> bool:
    """Whether an interval of a ratio is known and at most NARROW wide."""
    if interval is None:
        return False
    low, high = interval["low"], interval["high"]
    return high - low <= NARROW * (low + high) / 2


def milliseconds(seconds: list[float]) -> dict[str, Any]:
    """Median, quartiles and fastest run in milliseconds, to a microsecond."""
    lower, _, upper = statistics.quantiles(seconds, n=4)
    return {
        "ms": round(statistics.median(seconds) * 1e3, 3),
        "quartiles_ms": [round(lower * 1e3, 3), round(upper * 1e3, 3)],
        "fastest_ms": round(min(seconds) * 1e3, 3),
    }


def ratio_quartiles(dense: list[float], pruned: list[float]) -> list[float]:
    """Quartiles of dense / pruned over the pairs of neighbouring runs.

    With 1 between them the runs do not tell which of the two is faster.
    """
    ratios = [one / other for one, other in zip(dense, pruned, strict=True)]
    lower, _, upper = statistics.quantiles(ratios, n=4)
    return [round(lower, 4), round(upper, 4)]


def ratio_interval(
    dense: list[float], pruned: list[float], coverage: float = COVERAGE
) -> dict[str, float] | None:
    """The interval that the runs leave open for dense / pruned.

    Order statistics of the ratios of neighbouring runs: distribution-free, it holds their true
    median with this coverage, and a model that does not differ is called different at most that
    seldom. It is widened to the ratio of the medians where that lies outside.

    Returns:
        {"low", "high"}; None where the runs are too few (below 8 for COVERAGE).
    """
    ratios = [one / other for one, other in zip(dense, pruned, strict=True)]
    if (inside := _median_interval(ratios, coverage)) is None:
        return None
    ratio = statistics.median(dense) / statistics.median(pruned)
    low, high = min(inside[0], ratio), max(inside[1], ratio)
    return {"low": round(low, 4), "high": round(high, 4)}


def milliseconds_interval(seconds: list[float], coverage: float = COVERAGE) -> list[float] | None:
    """The interval of a median in ms; two independent ones hold both medians with the coverage."""
    inside = _median_interval(seconds, (1 + coverage) / 2)
    return None if inside is None else [round(end * 1e3, 4) for end in inside]


def _median_interval(values: list[float], coverage: float) -> tuple[float, float] | None:
    """Smallest interval between order statistics that holds the median with this coverage."""
    ordered, below, rank = sorted(values), 0.0, 0
    for count in range(len(values) // 2):
        # as many heads in so many throws of a coin: how often so few values lie below the median
        below += math.comb(len(values), count) / 2 ** len(values)
        if 2 * below > 1 - coverage:
            break
        rank = count + 1
    return (ordered[rank - 1], ordered[-rank]) if rank else None


def time_in_turns(
    phase: str, calls: Mapping[str, Call], repetitions: int, threads: int, measured: dict[str, Any]
) -> None:
    """Time one phase, dense and others in turns, and write what was found into `measured`.

    Args:
        phase: "vision", "prefill" or "decode".
        calls: "dense", "pruned" and further variants of the dense model.
        threads: of each call: decides which clock counts (`clock_of`).
        measured: a runtime's part of export.json; the numbers of the other phases stay.
    """
    clock = clock_of(threads)
    runs = timed_until_narrow(calls, repetitions, clock)
    for variant, times in runs.items():
        row, seconds = measured.setdefault(variant, {}), seconds_of(times, clock)
        row |= {f"{phase}_{key}": value for key, value in milliseconds(seconds).items()}
        row[f"{phase}_interval_ms"] = milliseconds_interval(seconds, LOOK_COVERAGE)
        for each in ("wall", "cpu"):
            median = statistics.median(seconds_of(times, each))
            row[f"{phase}_{each}_ms"] = round(median * 1e3, 4)
    measured[f"{phase}_runs"] = len(runs["pruned"])
    for variant in calls:
        if variant != "pruned":
            _compare(phase, variant, runs, clock, measured)
    measured[f"{phase}_narrow"] = is_narrow(measured[f"{phase}_speedup_interval"])
    measured["load_average"] = max(load_average(), measured.get("load_average", 0.0))


def _compare(phase: str, variant: str, runs: Runs, clock: str, measured: dict[str, Any]) -> None:
    """Add the ratio variant / pruned; above 1 the pruned model is faster, below 1 slower."""
    key = f"{phase}_speedup" if variant == "dense" else f"{phase}_speedup_over_{variant}"
    one, other = (seconds_of(runs[name], clock) for name in (variant, "pruned"))
    measured[key] = round(statistics.median(one) / statistics.median(other), 4)
    measured[f"{key}_quartiles"] = ratio_quartiles(one, other)
    measured[f"{key}_interval"] = ratio_interval(one, other, LOOK_COVERAGE)


def compare_with_best_dense(rows: Mapping[str, dict[str, Any]]) -> None:
    """Add the honest comparison: each pruned time against the fastest dense time in any runtime.

    Only times of one precision are compared.

    Args:
        rows: the parts of export.json of the runtimes that were measured, by runtime.
    """
    for phase in PHASES:
        for row in rows.values():
            if f"{phase}_speedup" not in row:
                continue
            name, variant, best = min(
                (
                    (name, variant, other[variant])
                    for name, other in rows.items()
                    for variant in ("dense", "dense_kernel")
                    if other["precision"] == row["precision"]
                    and f"{phase}_ms" in other.get(variant, {})
                ),
                key=lambda found: float(found[2][f"{phase}_ms"]),
            )
            key = f"{phase}_speedup_over_best_dense"
            row[key] = round(best[f"{phase}_ms"] / row["pruned"][f"{phase}_ms"], 4)
            row[f"{phase}_best_dense"] = name if variant == "dense" else f"{name}, {variant}"
            paired = "speedup" if variant == "dense" else f"speedup_over_{variant}"
            row[f"{key}_interval"] = (
                row[f"{phase}_{paired}_interval"]
                if rows[name] is row
                else _unpaired(phase, best, row)
            )


def _unpaired(phase: str, best: dict[str, Any], row: dict[str, Any]) -> dict[str, float] | None:
    """The interval of a ratio of medians that were not measured in turns."""
    dense, pruned = best[f"{phase}_interval_ms"], row["pruned"][f"{phase}_interval_ms"]
    if dense is None or pruned is None:
        return None
    return {"low": round(dense[0] / pruned[1], 4), "high": round(dense[1] / pruned[0], 4)}


def wide_intervals(rows: Mapping[str, dict[str, Any]]) -> str | None:
    """Which intervals did not become narrow, in words; None where all did."""
    wide = [
        f"{phase} in {name} (after {row[f'{phase}_runs']} runs)"
        for name, row in rows.items()
        for phase in PHASES
        if row.get(f"{phase}_narrow") is False
    ]
    if not wide:
        return None
    told = f"intervals wider than {NARROW:.0%} of their ratio: {', '.join(wide)}"
    logger.warning("export: %s", told)
    return told


def machine() -> dict[str, Any]:
    """What the numbers were measured on, the load of others included."""
    return {
        "processor": _processor(),
        "architecture": platform.machine(),
        "cores": os.cpu_count() or 1,
        "instructions": [name for name in INSTRUCTIONS if name in _flags()],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average_before": load_average(),
    }


def load_average() -> float:
    """Processes that wanted to run in the last minute, ours included: above the cores is noise."""
    return round(os.getloadavg()[0], 2)


def warn_of_load(load: float, cores: int) -> str | None:
    """Log a warning where more wanted to run than there are cores; what was logged, else None."""
    if load <= cores:
        return None
    warning = (
        f"the load average reached {load:g} on {cores} cores while graphs were timed: others took "
        "part of the processor; times and speed-ups are those of a busy machine"
    )
    logger.warning("export: %s", warning)
    return warning


def _cpuinfo(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or "unknown"


def _flags() -> set[str]:
    return set(_cpuinfo("flags").split())
