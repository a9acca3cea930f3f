"""The paper's tables and figures from our measurements, in the paper's layout."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from efficientllava.files import replacing, write_text
from efficientllava.registry import RUNTIMES
from efficientllava.report.comma_separated import comma_separated
from efficientllava.report.comparison import (
    headline_runtime,
    markdown_table,
    number,
    runtime_title,
)
from efficientllava.report.experiments.paper import PARTS, TABLE1, TABLE2, TABLE3, TABLE4, PaperRow
from efficientllava.report.experiments.plots import (
    accuracy_by_method_plot,
    grid_plot,
    trade_off_plot,
)
from efficientllava.report.experiments.statistics import (
    Measured,
    accuracy_of,
    formatted,
    mean,
    models_of,
)
from efficientllava.report.speedup import PHASES, Speedup, combined

DASH = "–"


def ablation_table(measured: Sequence[Measured], paper: Sequence[PaperRow]) -> str:
    """Tables 1 and 2: average ratio and accuracy of each variant, the paper's beside them."""
    body = []
    for (method, ratio), rows in models_of(measured).items():
        same = [row for row in paper if (row.method, row.ratio) == (method, ratio)]
        body.append(
            [
                method,
                f"{ratio:g}" if ratio else DASH,
                _achieved(rows),
                formatted(accuracy_of(rows), 2),
                str(len(rows)),
                *(
                    [f"{number(same[0].achieved, '.2f')}", f"{same[0].accuracy:.2f}"]
                    if same
                    else [DASH, DASH]
                ),
            ]
        )
    headings = ["method", "target", "average ratio", "accuracy %", "seeds"]
    model = paper[0].model
    return markdown_table(
        [*headings, f"paper, {model}: ratio", f"paper, {model}: accuracy %"], body
    )


def _achieved(rows: Sequence[Measured]) -> str:
    return formatted(
        mean(e.row.achieved_sparsity for e in rows if e.row.achieved_sparsity is not None), 4
    )


def domain_table(measured: Sequence[Measured], paper: Sequence[PaperRow]) -> str:
    """Table 3: accuracy by subject, context and grade; then the paper's own, model by model."""
    models = list(dict.fromkeys(row.model for row in paper))
    body = []
    for (method, ratio), rows in models_of(measured).items():
        theirs = {
            row.model: row.accuracy for row in paper if (row.method, row.ratio) == (method, ratio)
        }
        body.append(
            [
                f"{ratio:.1f}",
                method,
                *(formatted(accuracy_of(rows, part), 1) for part in PARTS),
                formatted(accuracy_of(rows), 2),
                str(len(rows)),
                *(number(theirs.get(model), ".2f") for model in models),
            ]
        )
    headings = ["ratio", "method", *PARTS, "average", "seeds"]
    text = markdown_table([*headings, *(f"paper, {model}: average" for model in models)], body)
    for model in models:
        lines = [
            [f"{row.ratio:.1f}", row.method, *(f"{v:.2f}" for v in (*row.parts, row.accuracy))]
            for row in paper
            if row.model == model
        ]
        text += f"\nThe paper's table 3 on {model}, as printed:\n\n"
        text += markdown_table(["ratio", "method", *PARTS, "average"], lines)
    return text


def benchmark_table(
    measured: Sequence[Measured], paper: Mapping[str, Sequence[PaperRow]], benchmark: str
) -> str:
    """Table 4: methods down, ratios across; then the paper's on its three benchmarks."""
    groups = models_of(measured)
    ratios = sorted({ratio for _, ratio in groups})
    methods = list(dict.fromkeys(method for method, _ in groups if method != "dense"))

    def line(name: str, values: Mapping[tuple[str, float], str]) -> list[str]:
        dense = values.get(("dense", 0.0), DASH)
        return [name, *(values.get((name, r), DASH) if r else dense for r in ratios)]

    headings = ["method", *(f"{ratio:g}" for ratio in ratios)]
    text = "Accuracy or score in per cent.\n"
    further = dict.fromkeys(name for model in measured for name in model.row.benchmarks)
    for part, name in [("", benchmark), *((name, name) for name in further)]:
        ours = {key: formatted(accuracy_of(rows, part), 2) for key, rows in groups.items()}
        text += f"\nMeasured here, benchmark `{name}`:\n\n"
        text += markdown_table(headings, [line(method, ours) for method in methods])
    for name, rows in paper.items():
        theirs = {(row.method, row.ratio): f"{row.accuracy:.2f}" for row in rows}
        text += f"\nThe paper's, {name} on {rows[0].model}, as printed:\n\n"
        text += markdown_table(headings, [line(method, theirs) for method in methods])
    return text


def trade_off_table(measured: Sequence[Measured], paper: str) -> str:
    """Figure 1: accuracy, latency and speed-up of every model."""
    body = []
    for (method, ratio), rows in models_of(measured).items():
        cells = [method, f"{ratio:g}" if ratio else DASH, formatted(accuracy_of(rows), 2)]
        for runtime in RUNTIMES:
            timings = [e.row.latencies[runtime] for e in rows if runtime in e.row.latencies]
            for phase in PHASES:
                milliseconds = mean(getattr(timing, f"{phase}_ms") for timing in timings)
                cells += [formatted(milliseconds, 2), _formatted_speedup(rows, runtime, phase)]
        body.append([*cells, str(len(rows))])
    headings = ["method", "ratio", "accuracy %"]
    for runtime in RUNTIMES:
        for phase in PHASES:
            headings += [f"{runtime_title(runtime)} {phase} ms", "×"]
    return markdown_table([*headings, "seeds"], body) + f"\n{paper}\n"


def _speedup(rows: Sequence[Measured], runtime: str, phase: str) -> Speedup | None:
    """Of one model over the seeds; None where none was measured."""
    timings = [e.row.latencies[runtime] for e in rows if runtime in e.row.latencies]
    return combined([gain for t in timings if (gain := t.speedup(phase)) is not None])


def _formatted_speedup(rows: Sequence[Measured], runtime: str, phase: str) -> str:
    speedup = _speedup(rows, runtime, phase)
    return DASH if speedup is None else str(speedup)


def grid_table(measured: Sequence[Measured]) -> str:
    """Figure 3: accuracy over the number and the length of the proxy's text segments."""
    cells = grid_of(measured)
    lengths = sorted({length for _, length in cells})
    body = [
        [f"n = {n:g}", *(formatted(accuracy_of(cells[n, s]), 2) for s in lengths)]
        for n in sorted({n for n, _ in cells})
    ]
    return markdown_table(["segments", *(f"s = {length:g}" for length in lengths)], body)


def grid_of(measured: Sequence[Measured]) -> dict[tuple[float, float], list[Measured]]:
    """The pruned models by (segments, tokens in a segment)."""
    cells: dict[tuple[float, float], list[Measured]] = {}
    for model in measured:
        if model.row.method != "dense":
            setting = dict(model.setting)
            key = float(setting["proxy.segments"]), float(setting["proxy.segment_length"])
            cells.setdefault(key, []).append(model)
    return cells


def overview_table(measured: Sequence[Measured]) -> str:
    """Every method at every ratio: size, losses, accuracy and latency."""
    body = []
    for (method, ratio), rows in models_of(measured).items():
        cells = [method, f"{ratio:g}" if ratio else DASH, _achieved(rows)]
        size = mean(e.row.bytes_on_disk / 1e6 for e in rows if e.row.bytes_on_disk is not None)
        losses = [
            mean(value for e in rows if (value := getattr(e.row, name)) is not None)
            for name in ("text_loss", "answer_nll")
        ]
        count = mean(e.row.parameters for e in rows if e.row.parameters is not None)
        cells += [
            formatted(size, 3),
            formatted(count, 0),
            *(formatted(loss, 3) for loss in losses),
            formatted(accuracy_of(rows), 2),
        ]
        for runtime in RUNTIMES:
            cells += [_formatted_speedup(rows, runtime, phase) for phase in PHASES]
        body.append([*cells, str(len(rows))])
    headings = ["method", "ratio", "zeros or removed", "MB on disk", "parameters"]
    headings += ["text loss", "answer loss", "accuracy %"]
    for runtime in RUNTIMES:
        headings += [f"{runtime_title(runtime)} prefill ×", "decode ×"]
    return markdown_table([*headings, "seeds"], body)


def search_table(measured: Sequence[Measured]) -> str:
    """Searches on their own objective: the structural risk of the best policy and of uniform.

    Both are measured under the projector as it is at the end, those of `efficientllava_plus` under
    the model's own.
    """
    body = []
    for (method, ratio), rows in models_of(measured).items():
        searches = [search.row.search for search in rows if search.row.search is not None]
        if not searches:
            continue
        pairs = [(one["uniform_risk_final_projector"], one["best_risk"]) for one in searches]
        wins = [best < uniform for uniform, best in pairs if uniform is not None]
        body.append(
            [
                method,
                f"{ratio:g}",
                formatted(mean(uniform for uniform, _ in pairs if uniform is not None), 4),
                formatted(mean(best for _, best in pairs), 4),
                f"{sum(wins)} of {len(wins)}",
                formatted(mean(one["candidates"] for one in searches), 1),
                f"{min(one['lowest_mean_sparsity'] for one in searches):.4f}",
                f"{max(one['highest_mean_sparsity'] for one in searches):.4f}",
                formatted(mean(one["projector_rounds_kept"] for one in searches), 1),
                str(len(searches)),
            ]
        )
    headings = ["method", "ratio", "risk of uniform", "risk of best", "search wins", "evaluations"]
    headings += ["fewest zeros of a candidate", "most zeros", "projector rounds kept", "seeds"]
    return markdown_table(headings, body)


FIGURE1_OF_PAPER = (
    "The paper reports, for its own models in DeepSparse: ×1.47 at 0.45 points of accuracy lost "
    "(LLaVA-v1.5-7B), ×1.8 at 83.05 % on ScienceQA, ×2.16 at ratio 0.5."
)
Layout = Callable[[Sequence[Measured], str], str]
LAYOUTS: dict[str, Layout] = {
    "table1": lambda measured, benchmark: ablation_table(measured, TABLE1),
    "table2": lambda measured, benchmark: ablation_table(measured, TABLE2),
    "table3": lambda measured, benchmark: domain_table(measured, TABLE3),
    "table4": lambda measured, benchmark: benchmark_table(measured, TABLE4, benchmark),
    "figure1": lambda measured, benchmark: trade_off_table(measured, FIGURE1_OF_PAPER),
    "figure3": lambda measured, benchmark: grid_table(measured),
    "methods": lambda measured, benchmark: overview_table(measured),
    "searches": lambda measured, benchmark: search_table(measured),
    "calibration": lambda measured, benchmark: overview_table(measured),
    "compensation": lambda measured, benchmark: overview_table(measured),
}


def write_experiment(
    folder: Path, name: str, title: str, lead: str, measured: Sequence[Measured], benchmark: str
) -> None:
    """Write table.md, table.csv and plot.png of an experiment, whole or not at all.

    Args:
        folder: is replaced.
        name: a key of LAYOUTS.
        lead: the experiment, model and command.
        benchmark: on which the accuracy was measured.
    """
    table = LAYOUTS[name](measured, benchmark)
    with replacing(Path(folder)) as temporary:
        temporary.mkdir(parents=True)
        write_text(temporary / "table.md", f"# {title}\n\n{lead}\n\n![plot](plot.png)\n\n{table}")
        write_text(temporary / "table.csv", _csv(measured))
        _plot(name, temporary / "plot.png", title, measured)


def _plot(name: str, path: Path, title: str, measured: Sequence[Measured]) -> None:
    if name == "figure3":
        grid = {key: accuracy_of(rows) for key, rows in grid_of(measured).items()}
        grid_plot({key: value for key, value in grid.items() if value is not None}, path, title)
        return
    groups = models_of(measured)
    accuracies = {key: value for key, rows in groups.items() if (value := accuracy_of(rows))}
    if name == "figure1":
        runtime = headline_runtime([model.row for model in measured])
        times = {
            key: milliseconds.value
            for key, rows in groups.items()
            if (
                milliseconds := mean(
                    e.row.latencies[runtime].prefill_ms for e in rows if runtime in e.row.latencies
                )
            )
        }
        same = {
            key
            for key, rows in groups.items()
            if (speedup := _speedup(rows, runtime, "prefill")) is not None
            and speedup.factor is None
        }
        trade_off_plot(accuracies, times, path, title, runtime_title(runtime), same=same)
    else:
        accuracy_by_method_plot(accuracies, path, title)


def _csv(measured: Sequence[Measured]) -> str:
    """One line per model and seed, with everything that was recorded of it."""
    lines = list(csv.DictReader(io.StringIO(comma_separated([e.row for e in measured]))))
    whole = [
        {
            "seed": model.seed,
            **dict(model.setting),
            **line,
            **{f"search_{name}": value for name, value in (model.row.search or {}).items()},
        }
        for model, line in zip(measured, lines, strict=True)
    ]
    names = dict.fromkeys(name for line in whole for name in line)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(whole)
    return buffer.getvalue()
