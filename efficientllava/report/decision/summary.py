"""The few numbers by which a pruned model is chosen, the same set for every model, dense too.

MLflow has all of them as metrics `summary/NAME`. `dvc metrics` has those that fit a screen, in one
small file a model. A file's name says the method and no ratio where that is the target ratio, so
that `dvc metrics diff` compares a method with itself when `ratios` has changed; best.json compares
whatever was best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from efficientllava.files import replacing, write_json
from efficientllava.report.comparison import Row, headline_runtime
from efficientllava.report.speedup import PHASES, Speedup

PREFIX = "summary/"
"""Of the names in MLflow."""
BEST = "best"
IN_DVC = (
    "accuracy_percent",
    "accuracy_se_percent",
    "text_loss_nats",
    "answer_loss_nats",
    "zeros_percent",
    "prefill_ms",
    "decode_ms",
)
OF_BEST = ("accuracy_percent", "decode_ms")


@dataclass(frozen=True)
class Cost:
    """Seconds that a model's own stages took: of the clock, and of all processors together."""

    wall_seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Summary:
    """Numbers by name in the order in which they decide, and the intervals of two ratios in words.

    Ratios are dense / pruned: above 1 the pruned model is faster. A number never stands without
    its interval, so words name the ends.
    """

    numbers: Mapping[str, float]
    words: Mapping[str, str]

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers by their names in MLflow."""
        return {f"{PREFIX}{name}": value for name, value in self.numbers.items()}

    @property
    def tags(self) -> dict[str, str]:
        """The words by their names in MLflow."""
        return {f"{PREFIX}{name}": value for name, value in self.words.items()}


def summary(
    row: Row, rows: Sequence[Row], dense_loss: float | None = None, cost: Cost | None = None
) -> Summary:
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
        "accuracy_se_percent": None if score is None else 100 * score.standard_error,
        "answer_loss_nats": row.answer_nll,
        "text_loss_nats": row.text_loss,
    }
    words = {}
    if latency is not None:
        words["runtime"] = runtime
        for phase in reversed(PHASES):
            speedup = Speedup(1.0, 1.0, 1.0) if dense else latency.speedup(phase)
            numbers[f"{phase}_ms"] = getattr(latency, f"{phase}_ms")
            if speedup is not None:
                numbers[f"{phase}_ratio_to_dense"] = speedup.ratio
                words[f"{phase}_ratio_to_dense"] = "the reference" if dense else str(speedup)
    numbers |= {
        "zeros_percent": None if row.achieved_sparsity is None else 100 * row.achieved_sparsity,
        "weights_megabytes": None if row.bytes_on_disk is None else row.bytes_on_disk / 1e6,
        "parameters_millions": None if row.parameters is None else row.parameters / 1e6,
        "proxy_loss_nats": dense_loss if dense else row.proxy_loss,
        "cost_cpu_seconds": None if cost is None else cost.cpu_seconds,
        "cost_wall_seconds": None if cost is None else cost.wall_seconds,
    }
    for name, measure in row.measures.items():
        numbers |= {name: measure.value, f"{name}_se": measure.error}
    return Summary(
        {name: float(value) for name, value in numbers.items() if value is not None}, words
    )


def write_summaries(folder: Path, rows: Sequence[Row], target: float) -> None:
    """Write METHOD.json for models at the target ratio, METHOD-RATIO.json for others, best.json.

    A model of which nothing was measured has no file.

    Args:
        folder: made whole or not at all.
        rows: of the comparison, with latencies.
        target: the ratio at which a model can be best.
    """
    at_target = [row for row in rows if row.method != "dense" and row.ratio == target]
    best = max(at_target, key=_merit, default=None)
    with replacing(folder) as temporary:
        temporary.mkdir()
        for row in rows:
            named = row in at_target or row.method == "dense"
            name = row.method if named else f"{row.method}-{row.ratio:g}"
            numbers = {
                key: round(value, 4)
                for key, value in summary(row, rows).numbers.items()
                if key in IN_DVC or key.removesuffix("_se") in row.measures
            }
            if numbers:
                write_json(temporary / f"{name}.json", numbers)
            if row is best and row.score is not None:
                write_json(temporary / f"{BEST}.json", _best(row, numbers))


def _best(row: Row, numbers: Mapping[str, float]) -> dict[str, float | str]:
    """Under names that no other file has: `dvc exp show` puts a file's name before those it has."""
    shown = {f"{BEST}_{name}": numbers[name] for name in OF_BEST if name in numbers}
    return {BEST: row.method, **shown}


def _merit(row: Row) -> tuple[float, float]:
    """Accuracy, then the answer loss: as the champion is chosen (flows/tracking/champion.py)."""
    accuracy = float("-inf") if row.score is None else row.score.accuracy
    return accuracy, -(float("inf") if row.answer_nll is None else row.answer_nll)
