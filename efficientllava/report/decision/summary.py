"""The few numbers by which a pruned model is chosen, the same set for every model, dense too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from efficientllava.report.comparison import Row, headline_runtime
from efficientllava.report.speedup import PHASES, Speedup

PREFIX = "summary/"


@dataclass(frozen=True)
class Cost:
    """Seconds that a model's own stages took: of the clock, and of all processors together."""

    wall_seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Summary:
    """Numbers by name, and the intervals of the two ratios in words.

    Ratios are dense / pruned: above 1 the pruned model is faster. A number never stands without
    its interval, so words name the ends.
    """

    numbers: Mapping[str, float]
    words: Mapping[str, str]


def summary(row: Row, rows: Sequence[Row], dense_loss: float | None, cost: Cost | None) -> Summary:
    """Sum up one model; what was not measured has no entry.

    Args:
        rows: of the whole comparison; they decide which runtime is taken.
        dense_loss: the proxy loss of the dense model, in nats: 0 if it is a divergence from it.
        cost: of the model's own stages.
    """
    dense = row.method == "dense"
    runtime = headline_runtime(rows)
    latency = row.latencies.get(runtime)
    score = row.score
    numbers: dict[str, float | None] = {
        "accuracy_percent": None if score is None else 100 * score.accuracy,
        "accuracy_standard_error_percent": None if score is None else 100 * score.standard_error,
        "text_loss_nats": row.text_loss,
        "answer_loss_nats": row.answer_nll,
        "proxy_loss_nats": dense_loss if dense else row.proxy_loss,
        "zeros_percent": None if row.achieved_sparsity is None else 100 * row.achieved_sparsity,
        "weights_megabytes": None if row.bytes_on_disk is None else row.bytes_on_disk / 1e6,
        "parameters_millions": None if row.parameters is None else row.parameters / 1e6,
        "cost_wall_seconds": None if cost is None else cost.wall_seconds,
        "cost_cpu_seconds": None if cost is None else cost.cpu_seconds,
    }
    words = {}
    if latency is not None:
        words["runtime"] = runtime
        for phase in PHASES:
            speedup = Speedup(1.0, 1.0, 1.0) if dense else latency.speedup(phase)
            numbers[f"{phase}_ms"] = getattr(latency, f"{phase}_ms")
            if speedup is not None:
                numbers[f"{phase}_ratio_to_dense"] = speedup.ratio
                words[f"{phase}_ratio_to_dense"] = "the reference" if dense else str(speedup)
    known = {
        f"{PREFIX}{name}": float(value) for name, value in numbers.items() if value is not None
    }
    return Summary(known, {f"{PREFIX}{name}": value for name, value in words.items()})
