"""The comparison as CSV: everything of every row, unrounded."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from math import inf
from typing import Any

from efficientllava.report.comparison import Row
from efficientllava.report.speedup import NO_DIFFERENCE, PHASES


def comma_separated(rows: Sequence[Row]) -> str:
    """Everything of every row as CSV with unrounded numbers; empty where unknown.

    A speed-up whose interval holds 1 is "no difference measured"; its ends have their columns.
    """
    columns = [_flat(row) for row in rows]
    names = list(dict.fromkeys(name for row in columns for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(columns)
    return buffer.getvalue()


def _flat(row: Row) -> dict[str, Any]:
    flat: dict[str, Any] = {
        "method": row.method,
        "ratio": row.ratio,
        "achieved_sparsity": row.achieved_sparsity,
        "proxy_loss": row.proxy_loss,
        "text_loss": row.text_loss,
        "perplexity": row.perplexity,
        "perplexity_error": row.perplexity_error,
        "answer_nll": row.answer_nll,
        "accuracy": row.score and row.score.accuracy,
        "standard_error": row.score and row.score.standard_error,
        "n": row.score and row.score.n,
        "bytes_on_disk": row.bytes_on_disk,
        "parameters": row.parameters,
    }
    for runtime, timing in row.latencies.items():
        flat[f"{runtime}_prefill_ms"] = timing.prefill_ms
        flat[f"{runtime}_decode_ms"] = timing.decode_ms
        for phase in PHASES:
            if (speedup := timing.speedup(phase)) is not None:
                key = f"{runtime}_{phase}_speedup"
                flat[key] = speedup.factor or NO_DIFFERENCE
                if speedup.high < inf:
                    flat[f"{key}_low"], flat[f"{key}_high"] = speedup.low, speedup.high
    for name, score in (row.breakdowns | row.benchmarks).items():
        flat[f"accuracy_{name}"] = score.accuracy
        flat[f"standard_error_{name}"] = score.standard_error
        flat[f"n_{name}"] = score.n
    for name, measure in row.measures.items():
        flat[name], flat[f"{name}_error"] = measure.value, measure.error
    return flat
