"""The comparison table: one row per model, read from the record files of the stages."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from efficientllava.errors import UserError
from efficientllava.files import read_json, stored_numbers
from efficientllava.registry import RUNTIMES
from efficientllava.report.speedup import PHASES
from efficientllava.report.speedup import Latency as Latency  # of a row

LOSSES = ("text_loss", "perplexity", "perplexity_error", "answer_nll")
BREAKDOWNS = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12")


@dataclass(frozen=True)
class Score:
    """Accuracy over `n` questions with its standard error; shares, not per cent."""

    accuracy: float
    standard_error: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.1f} ± {100 * self.standard_error:.1f}"


@dataclass(frozen=True)
class Measure:
    """A metric of another evaluator, in its own unit; its standard error where it is known."""

    value: float
    error: float | None

    def __str__(self) -> str:
        return f"{self.value:.4g}" + ("" if self.error is None else f" ± {self.error:.2g}")


@dataclass(frozen=True)
class Row:
    """One model of the comparison; None where a stage has not run or does not apply.

    Attributes:
        benchmarks: beside the main one.
        measures: by TASK.METRIC of lmms-eval.
        search: the summary of its search.
    """

    method: str
    ratio: float
    achieved_sparsity: float | None = None
    proxy_loss: float | None = None
    text_loss: float | None = None
    perplexity: float | None = None
    perplexity_error: float | None = None
    answer_nll: float | None = None
    score: Score | None = None
    breakdowns: dict[str, Score] = field(default_factory=dict)
    benchmarks: dict[str, Score] = field(default_factory=dict)
    measures: dict[str, Measure] = field(default_factory=dict)
    bytes_on_disk: int | None = None
    parameters: int | None = None
    latencies: dict[str, Latency] = field(default_factory=dict)
    search: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """ "dense", or the method with its ratio."""
        return self.method if self.method == "dense" else f"{self.method} {self.ratio:g}"


def read_rows(artifacts: Path, methods: Sequence[str], ratios: Sequence[float]) -> list[Row]:
    """Read the rows of the comparison: dense, then every method at every ratio.

    Args:
        artifacts: the folder that the stages write.

    Raises:
        UserError: nothing was evaluated, or a record lacks a field.
    """
    artifacts = Path(artifacts)
    exports = {
        (method, ratio): record
        for ratio in ratios
        for method in methods
        if (record := _read(artifacts / "export_metrics" / f"{method}-{ratio:g}.json"))
    }
    rows = [_dense_row(artifacts, list(exports.values()))]
    for ratio in ratios:
        for method in methods:
            if method != "dense":
                rows.append(_pruned_row(artifacts, method, ratio, exports.get((method, ratio))))
    if all(row.score is None and row.achieved_sparsity in (None, 0.0) for row in rows):
        raise UserError(
            "holds no records of pruned or evaluated models",
            where=str(artifacts),
            remedy="run the stages before the report: `make demo` or `make repro`",
        )
    return rows


def _read(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.exists() else None


def _dense_row(artifacts: Path, exports: Iterable[dict[str, Any]]) -> Row:
    weights = sorted((artifacts / "model").glob("*.safetensors"))
    measured: dict[str, list[dict[str, Any]]] = {}
    for record in exports:
        for runtime, timing in record["runtimes"].items():
            if timing.get("available"):
                measured.setdefault(runtime, []).append(timing["dense"])
    return Row(
        method="dense",
        ratio=0.0,
        achieved_sparsity=0.0,
        bytes_on_disk=sum(path.stat().st_size for path in weights) if weights else None,
        parameters=sum(map(stored_numbers, weights)) if weights else None,
        # dense is measured again beside every pruned model: the middle of these
        latencies={
            runtime: Latency(
                statistics.median(timing["prefill_ms"] for timing in timings),
                statistics.median(timing["decode_ms"] for timing in timings),
            )
            for runtime, timings in measured.items()
        },
        **_scores(artifacts / "evaluation" / "dense" / "scores.json"),
    )


def _pruned_row(artifacts: Path, method: str, ratio: float, export: dict[str, Any] | None) -> Row:
    name = f"{method}-{ratio:g}"
    metrics = _read(artifacts / "pruned_metrics" / f"{name}.json") or {}
    search = _read(artifacts / "search" / name / "search.json") or {}
    latencies = {}
    for runtime, timing in (export or {"runtimes": {}})["runtimes"].items():
        if timing.get("available"):
            latencies[runtime] = Latency.pruned(timing)
    return Row(
        method=method,
        ratio=ratio,
        achieved_sparsity=metrics.get("achieved_sparsity"),
        proxy_loss=metrics.get("proxy_loss"),
        bytes_on_disk=metrics.get("bytes_on_disk"),
        parameters=metrics.get("parameters"),
        latencies=latencies,
        search=search if "best_risk" in search else None,
        **_scores(artifacts / "evaluation" / name / "scores.json"),
    )


def _scores(path: Path) -> dict[str, Any]:
    record = _read(path)
    if record is None:
        return {}
    try:
        return {
            # nothing to score: the answers of VizWiz's test split are not public
            "score": Score(record["accuracy"], record["standard_error"], record["n"])
            if record["n"]
            else None,
            **{name: record.get(name) for name in LOSSES},
            **{
                group: {
                    name: Score(part["accuracy"], part["standard_error"], part["n"])
                    for name, part in record.get(group, {}).items()
                    if part["n"]
                }
                for group in ("breakdowns", "benchmarks")
            },
            "measures": {
                f"{task}.{metric}": Measure(part["value"], part["standard_error"])
                for task, metrics in record.get("lmms_eval", {}).items()
                for metric, part in metrics.items()
            },
        }
    except (KeyError, TypeError) as error:
        raise UserError(f"lacks a field ({error})", where=str(path)) from error


def number(value: float | None, form: str) -> str:
    """The number in the form given, a dash for None."""
    return "–" if value is None else format(value, form)


def with_error(value: float | None, error: float | None) -> str:
    """The number with its standard error, to two decimals; a dash for None."""
    return number(value, ".2f") + ("" if error is None else f" ± {error:.2f}")


def runtimes_of(rows: Sequence[Row]) -> list[str]:
    """The runtimes that at least one row was measured in, in the registry's order."""
    return [name for name in RUNTIMES if any(name in row.latencies for row in rows)]


def headline_runtime(rows: Sequence[Row]) -> str:
    """The runtime of plots and headline numbers: the first that was measured, if any was."""
    return next(iter([*runtimes_of(rows), *RUNTIMES]))


def runtime_title(name: str) -> str:
    """A runtime's title in tables; its name where its package is no longer installed."""
    return str(RUNTIMES[name].title) if name in RUNTIMES else name


def timings(latency: Latency | None, lines: bool = False) -> list[str]:
    """Cells of prefill and decode: milliseconds, speed-up and its interval.

    Args:
        lines: the interval in a line of its own, for narrow tables.
    """
    if latency is None:
        return ["–", "–"]
    cells = []
    for phase in PHASES:
        cell, speedup = _short(getattr(latency, f"{phase}_ms")), latency.speedup(phase)
        if speedup is not None and lines:
            cell = "\n".join([cell, speedup.formatted, speedup.interval])
            cell = cell.replace(" measured", "\nmeasured").replace(", wide", ",\nwide")
        elif speedup is not None:
            cell += f" {speedup}"
        cells.append(cell)
    return cells


def _short(milliseconds: float) -> str:
    return f"{milliseconds:.{0 if milliseconds >= 1000 else 1 if milliseconds >= 100 else 2}f}"


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and formatted cells of the comparison, the same in every form of the table."""
    runtimes = runtimes_of(rows)
    headings = [
        "method",
        "ratio",
        "zeros",
        "proxy loss",
        "text loss",
        "perplexity",
        "answer loss",
        "accuracy %",
        "MB",
        "parameters",
    ]
    for runtime in runtimes:
        headings += [f"{runtime_title(runtime)} {phase} ms" for phase in PHASES]
    body = []
    for row in rows:
        size = None if row.bytes_on_disk is None else row.bytes_on_disk / 1e6
        line = [
            row.method,
            "–" if row.method == "dense" else f"{row.ratio:g}",
            number(row.achieved_sparsity, ".4f"),
            number(row.proxy_loss, ".4f"),
            number(row.text_loss, ".3f"),
            with_error(row.perplexity, row.perplexity_error),
            number(row.answer_nll, ".3f"),
            "–" if row.score is None else str(row.score),
            number(size, ".2f"),
            number(row.parameters, ",d"),
        ]
        for runtime in runtimes:
            line += timings(row.latencies.get(runtime))
        body.append(line)
    return headings, body


def breakdown_cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the accuracies by subject, context and grade."""
    body = [
        [row.name]
        + [str(row.breakdowns[name]) if name in row.breakdowns else "–" for name in BREAKDOWNS]
        for row in rows
        if row.breakdowns
    ]
    return ["model", *BREAKDOWNS], body


def benchmark_cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of further benchmarks in per cent, and of lmms-eval's metrics as given.

    Models stand across: a task has more metrics than a page has columns.
    """
    scores = [row.benchmarks | row.measures for row in rows]
    names = dict.fromkeys(name for each in scores for name in each)
    body = [[name, *(str(each.get(name, "–")) for each in scores)] for name in names]
    return ["benchmark", *(row.name for row in rows)], body


def markdown(rows: Sequence[Row]) -> str:
    """The comparison, the breakdowns and further benchmarks as Markdown tables."""
    text = markdown_table(*cells(rows))
    for headings, body in (breakdown_cells(rows), benchmark_cells(rows)):
        if body:
            text += "\n" + markdown_table(headings, body)
    return text


def markdown_table(
    headings: Sequence[str], body: Sequence[Sequence[str]], rest: str = "---:"
) -> str:
    """One Markdown table; the first column is aligned left, the others by `rest`."""
    lines = [headings, ["---", *[rest] * (len(headings) - 1)], *body]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
