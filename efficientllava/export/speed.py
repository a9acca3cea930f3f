"""Latency of graphs, dense and pruned in turns, and the machine it was measured on. No torch."""

from __future__ import annotations

import logging
import math
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from efficientllava.export.assistant import GRAPHS, decode_inputs, prefill_inputs
from efficientllava.export.runtimes import Arrays, Runtime

logger = logging.getLogger(__name__)

WARM_UP = 3
COVERAGE = 0.99
"""Of the intervals of speed-ups: how often the true ratio lies inside."""
INSTRUCTIONS = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "avx512_vbmi2", "amx_tile", "amx_int8", "amx_bf16",
)  # fmt: skip


def interleaved(
    graphs: Mapping[str, Runtime], inputs: Mapping[str, Arrays], repetitions: int
) -> dict[str, list[float]]:
    """Seconds of each run of each graph, in turns: what slows the machine slows all alike.

    Args:
        graphs: by name. The order is turned round at every repetition, so that none always runs
            in the other's cold cache.
        inputs: of each graph: a smaller model's cache has other shapes than the dense one's.
    """
    names = list(graphs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(WARM_UP + repetitions):
        for name in names if repetition % 2 else names[::-1]:
            started = time.perf_counter()
            graphs[name].run(inputs[name])
            elapsed = time.perf_counter() - started
            if repetition >= WARM_UP:
                seconds[name].append(elapsed)
    return seconds


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


def ratio_interval(dense: list[float], pruned: list[float]) -> dict[str, float] | None:
    """The interval that the runs leave open for dense / pruned.

    Order statistics of the ratios of neighbouring runs: distribution-free, it holds their true
    median with COVERAGE, and a graph that does not differ is called different at most that seldom.
    It is widened to the ratio of the medians where that lies outside.

    Returns:
        {"low", "high"}; None where the runs are too few (below 8).
    """
    ratios = [one / other for one, other in zip(dense, pruned, strict=True)]
    if (inside := _median_interval(ratios, COVERAGE)) is None:
        return None
    ratio = statistics.median(dense) / statistics.median(pruned)
    low, high = min(inside[0], ratio), max(inside[1], ratio)
    return {"low": round(low, 4), "high": round(high, 4)}


def milliseconds_interval(seconds: list[float]) -> list[float] | None:
    """The interval of a median in ms; two independent ones hold both medians with COVERAGE."""
    inside = _median_interval(seconds, (1 + COVERAGE) / 2)
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


def timing_inputs(name: str, graph: Runtime) -> Arrays:
    """Full-length inputs of random numbers: a whole prompt, or one token after a full cache."""
    generator = np.random.default_rng(0)

    def normal(shape: tuple[int, ...]) -> np.ndarray:
        return generator.standard_normal(shape, dtype=np.float32)

    if name == "vision":
        return {"pixel_values": normal(graph.shapes["pixel_values"])}
    _, tokens, width = graph.shapes["inputs_embeds"]
    if name == "prefill":
        return prefill_inputs(normal((tokens, width)), tokens)
    context = graph.shapes["attention_mask"][-1]
    cache = {
        name: normal(shape)
        for name, shape in graph.shapes.items()
        if name.startswith("past_key_values.")
    }
    return {**decode_inputs(normal((width,)), context - 1, context), **cache}


def time_in_turns(
    name: str, graphs: Mapping[str, Runtime], repetitions: int, measured: dict[str, Any]
) -> None:
    """Time one graph, dense and pruned in turns, and write what was found into `measured`.

    Args:
        name: "vision", "prefill" or "decode".
        graphs: "dense" and "pruned".
        measured: a runtime's part of export.json; the numbers of the other graphs stay.
    """
    inputs = {variant: timing_inputs(name, graph) for variant, graph in graphs.items()}
    seconds = interleaved(graphs, inputs, repetitions)
    for variant, graph in graphs.items():
        row = measured[variant]
        row |= {f"{name}_{key}": value for key, value in milliseconds(seconds[variant]).items()}
        row[f"{name}_interval_ms"] = milliseconds_interval(seconds[variant])
        row[f"{name}_compile_seconds"] = round(graph.compile_seconds, 3)
        if graph.engine_share is not None:
            row[f"{name}_engine_share"] = graph.engine_share
            if name != "vision":
                # of the language model: the smaller of its two graphs
                row["engine_share"] = min(row.get("engine_share", 1.0), graph.engine_share)
    # above 1 the pruned graph is faster, below 1 slower
    measured[f"{name}_speedup"] = round(
        measured["dense"][f"{name}_ms"] / measured["pruned"][f"{name}_ms"], 4
    )
    measured[f"{name}_speedup_quartiles"] = ratio_quartiles(seconds["dense"], seconds["pruned"])
    measured[f"{name}_speedup_interval"] = ratio_interval(seconds["dense"], seconds["pruned"])
    measured["load_average"] = max(load_average(), measured.get("load_average", 0.0))


def compare_with_best_dense(rows: Sequence[dict[str, Any]]) -> None:
    """Add the honest comparison: each pruned time against the fastest dense time in any runtime.

    Args:
        rows: the parts of export.json of the runtimes that were measured.
    """
    for name in GRAPHS:
        best = min(rows, key=lambda row: float(row["dense"][f"{name}_ms"]))
        for row in rows:
            key = f"{name}_speedup_over_best_dense"
            row[key] = round(best["dense"][f"{name}_ms"] / row["pruned"][f"{name}_ms"], 4)
            row[f"{key}_interval"] = (
                row[f"{name}_speedup_interval"] if row is best else _unpaired(name, best, row)
            )


def _unpaired(name: str, best: dict[str, Any], row: dict[str, Any]) -> dict[str, float] | None:
    """The interval of a ratio of medians that were not measured in turns."""
    dense, pruned = best["dense"][f"{name}_interval_ms"], row["pruned"][f"{name}_interval_ms"]
    if dense is None or pruned is None:
        return None
    return {"low": round(dense[0] / pruned[1], 4), "high": round(dense[1] / pruned[0], 4)}


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
