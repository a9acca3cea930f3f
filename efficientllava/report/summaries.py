"""One small file a model for `dvc metrics`: the numbers that decide, the same set for all models.

A file's name says the method and no ratio where that is the target ratio, so that `dvc metrics
diff` compares a method with itself when `ratios` has changed; best.json compares whatever was best.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from efficientllava.files import replacing, write_json
from efficientllava.report.comparison import Row, headline_runtime

BEST = "best"


def write_summaries(folder: Path, rows: Sequence[Row], target: float) -> None:
    """Write METHOD.json for models at the target ratio, METHOD-RATIO.json for others, best.json.

    Args:
        folder: made whole or not at all.
        rows: of the comparison, with latencies.
        target: the ratio at which a model can be best.
    """
    at_target = [row for row in rows if row.method != "dense" and row.ratio == target]
    best = max(at_target, key=_merit, default=None)
    runtime = headline_runtime(rows)
    with replacing(folder) as temporary:
        temporary.mkdir()
        for row in rows:
            named = row in at_target or row.method == "dense"
            name = row.method if named else f"{row.method}-{row.ratio:g}"
            write_json(temporary / f"{name}.json", summary(row, runtime))
        if best is not None and best.score is not None:
            write_json(temporary / f"{BEST}.json", _best(best, summary(best, runtime)))


def summary(row: Row, runtime: str) -> dict[str, float]:
    """The numbers of one model: shares, losses in nats, milliseconds in one runtime.

    What was not measured has no entry.
    """
    latency = row.latencies.get(runtime)
    numbers = {
        "ratio": row.ratio,
        "accuracy": None if row.score is None else row.score.accuracy,
        "error": None if row.score is None else row.score.standard_error,
        "zeros": row.achieved_sparsity,
        "text_loss": row.text_loss,
        "answer_loss": row.answer_nll,
        "prefill_ms": None if latency is None else latency.prefill_ms,
        "decode_ms": None if latency is None else latency.decode_ms,
    }
    for name, measure in row.measures.items():
        numbers |= {name: measure.value, f"{name}_error": measure.error}
    return {name: round(value, 6) for name, value in numbers.items() if value is not None}


def _best(row: Row, numbers: dict[str, float]) -> dict[str, float | str]:
    """Under names that no other file has: `dvc exp show` puts a file's name before those it has."""
    shown = {name: numbers[name] for name in ("accuracy", "decode_ms") if name in numbers}
    return {BEST: row.method} | {f"{BEST}_{name}": value for name, value in shown.items()}


def _merit(row: Row) -> tuple[float, float]:
    """Accuracy, then the answer loss: as the champion is chosen (flows/tracking/champion.py)."""
    accuracy = float("-inf") if row.score is None else row.score.accuracy
    return accuracy, -(float("inf") if row.answer_nll is None else row.answer_nll)
