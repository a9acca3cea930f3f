"""The tables of docs/results.md, each from the cells alone."""

from __future__ import annotations

from collections.abc import Sequence

from bench.cells import MATCHED
from efficientllava.pruning.methods import method_named
from efficientllava.report.comparison import BREAKDOWNS, markdown_table
from efficientllava.report.statistics import Row, chosen, differences, mean, mean_of, told
from efficientllava.report.theme import METHODS

SEARCHED = tuple(name for name in METHODS if method_named(name).allocation == "search")


def ratios_of(rows: Sequence[Row]) -> list[float]:
    """The ratios there are cells of, ascending."""
    return sorted({row["ratio"] for row in rows if row["method"] != "dense"})


def methods_of(rows: Sequence[Row]) -> list[str]:
    """The methods there are cells of, in the order of every table."""
    order = [*METHODS, MATCHED]
    order.insert(order.index("sparsegpt") + 1, order.pop())
    return [name for name in order if any(row["method"] == name for row in rows)]


def comparison(rows: Sequence[Row]) -> str:
    """Every method at every ratio."""
    body = [_line("dense", "–", chosen(rows, "dense", 0.0))]
    for ratio in ratios_of(rows):
        for method in methods_of(rows):
            found = chosen(rows, method, ratio)
            if found and method not in ("dense", MATCHED):
                body.append(_line(method, f"{ratio:g}", found))
    headings = [
        "method",
        "ratio",
        "seeds",
        "zeros",
        "proxy KL",
        "held-out text loss",
        "answer loss",
        "accuracy %",
    ]
    return markdown_table(headings, body)


def _line(method: str, ratio: str, rows: Sequence[Row]) -> list[str]:
    return [
        method,
        ratio,
        str(len(rows)),
        told(mean_of(rows, "achieved_sparsity"), 4),
        told(mean_of(rows, "proxy_kl"), 4),
        told(mean_of(rows, "text_loss"), 3),
        told(mean_of(rows, "answer_nll"), 3),
        told(mean_of(rows, "accuracy"), 1, 100),
    ]


def against(rows: Sequence[Row], method: str, baseline: str, calibration: str) -> str:
    """Paired differences, seed by seed, of a method to a baseline at every ratio."""
    body = []
    for ratio in ratios_of(rows):
        first = chosen(rows, method, ratio, calibration)
        second = chosen(rows, baseline, ratio, calibration)
        if baseline in ("magnitude",):
            second = chosen(rows, baseline, ratio)
        fields = ("text_loss", "answer_nll", "accuracy")
        gaps = [differences(first, second, field) for field in fields]
        if not gaps[0]:
            continue
        n = len(gaps[0])
        body.append(
            [
                f"{ratio:g}",
                told(mean_of(first, "achieved_sparsity"), 4),
                told(mean_of(second, "achieved_sparsity"), 4),
                told(mean(gaps[0]), 3, sign=True),
                f"{sum(gap < 0 for gap in gaps[0])} of {n}",
                told(mean(gaps[1]), 3, sign=True),
                f"{sum(gap < 0 for gap in gaps[1])} of {n}",
                told(mean(gaps[2]), 2, 100, sign=True),
                f"{sum(gap > 0 for gap in gaps[2])} of {n}",
            ]
        )
    headings = [
        "ratio",
        f"zeros, {method}",
        f"zeros, {baseline}",
        "text loss",
        "better",
        "answer loss",
        "better",
        "accuracy, points",
        "better",
    ]
    return markdown_table(headings, body)


def calibration(rows: Sequence[Row]) -> str:
    """Text-only against text plus image-text calibration."""
    names = {"text": "text", "text_and_pairs": "text + image-text"}
    body = []
    for ratio in ratios_of(rows):
        found = chosen(rows, "magnitude", ratio)
        if found:
            body.append([f"{ratio:g}", "magnitude", "none", *_line("", "", found)[5:]])
        for method in ("sparsegpt", "efficientllava"):
            for key, name in names.items():
                if found := chosen(rows, method, ratio, key):
                    body.append([f"{ratio:g}", method, name, *_line("", "", found)[5:]])
    headings = ["ratio", "method", "calibration", "held-out text loss", "answer loss", "accuracy %"]
    return markdown_table(headings, body)


def searches(rows: Sequence[Row], band: tuple[float, float]) -> str:
    """What the search found on its own objective, and whether budget and policy held."""
    body = []
    for ratio in ratios_of(rows):
        for method in SEARCHED:
            found = chosen(rows, method, ratio)
            if not found:
                continue
            summaries = [row["search"] for row in found]
            n = len(found)
            low = min(summary["lowest_mean_sparsity"] for summary in summaries) - ratio
            high = max(summary["highest_mean_sparsity"] for summary in summaries) - ratio
            held = band[0] - 1e-6 <= low and high <= band[1] + 1e-6
            exact = sum(row["matrices_off_policy"] == 0 for row in found)
            wins = sum(s["best_risk"] < s["uniform_risk_final_projector"] for s in summaries)
            body.append(
                [
                    method,
                    f"{ratio:g}",
                    told(mean(s["uniform_risk_final_projector"] for s in summaries), 4),
                    told(mean(s["best_risk"] for s in summaries), 4),
                    f"{wins} of {n}",
                    told(mean(s["candidates"] for s in summaries), 0).split(" ")[0],
                    f"{_signed(low)} ... {_signed(high)}{'' if held else ' (left the band)'}",
                    f"{exact} of {n}",
                    f"{sum(row['chosen'] == 'sequential' for row in found)} of {n}",
                    told(mean(s["projector_rounds_kept"] for s in summaries), 1),
                ]
            )
    headings = [
        "method",
        "ratio",
        "risk of uniform",
        "risk of best",
        "search wins",
        "evaluations",
        "zeros of all candidates - ratio",
        "final zeros = policy",
        "sequential kept",
        "projector rounds kept",
    ]
    return markdown_table(headings, body)


def _signed(value: float) -> str:
    return f"{round(value, 4) + 0.0:+.4f}"


def breakdowns(rows: Sequence[Row]) -> str:
    """Accuracy by subject, context and grade."""
    body = []
    for ratio in [None, *ratios_of(rows)]:
        for method in methods_of(rows):
            if (method == "dense") != (ratio is None) or method == MATCHED:
                continue
            found = chosen(rows, method, ratio or 0.0)
            if found:
                parts = [
                    told(mean(row["breakdowns"][part]["accuracy"] for row in found), 1, 100)
                    for part in BREAKDOWNS
                ]
                body.append([method, "–" if ratio is None else f"{ratio:g}", *parts])
    return markdown_table(["method", "ratio", *BREAKDOWNS], body)
