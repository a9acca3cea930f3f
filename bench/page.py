"""docs/results.md, results.csv and the plots, from the cells."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import plots, tables
from bench.cells import MATCHED
from efficientllava.files import write_text
from efficientllava.parameters import Parameters
from efficientllava.report.statistics import Row, chosen, differences


def write_page(
    rows: Sequence[Row],
    parameters: Parameters,
    folder: Path,
    command: str,
    machine: Mapping[str, str],
    note: str = "",
) -> None:
    """Write the page with its CSV and plots into a folder (docs/)."""
    plots.comparison_plot(rows, folder / "results_comparison.png")
    plots.calibration_plot(rows, folder / "results_calibration.png")
    plots.search_plot(rows, folder / "results_search.png")
    write_text(folder / "results.csv", _csv(rows))
    write_text(folder / "results.md", _page(rows, parameters, command, machine, note))


def _page(
    rows: Sequence[Row],
    parameters: Parameters,
    command: str,
    machine: Mapping[str, str],
    note: str,
) -> str:
    seeds = sorted({row["seed"] for row in rows})
    hours = sum(row["seconds"] for row in rows) / 3600
    search = parameters.search
    ratios = ", ".join(f"{ratio:g}" for ratio in tables.ratios_of(rows))
    questions = next(row["n"] for row in rows)
    told = "; ".join(f"{name} {value}" for name, value in machine.items())
    parts = [
        "# Results",
        f"""This page is written by `{command}` from its finished cells; nothing on it is typed
by hand. Every seed is a model trained anew, with its own questions, proxy data and search
(seed of the model = seed of the proxy = seed of the search). Seeds: {seeds}. Ratios: {ratios}.
{questions} test questions a seed. {search.candidates} candidates in the first of
{search.rounds} rounds; {parameters.proxy.segments} text segments of
{parameters.proxy.segment_length} tokens and {parameters.proxy.pairs} image-text pairs as proxy.
Everything else as in [parameters.md](parameters.md) and `params.yaml`. {len(rows)} cells,
{hours:.1f} hours of one core in all, on: {told}. {note}

Numbers are means over seeds ± one standard error (sample standard deviation / √seeds). Losses
are in nats, lower is better. All cells, unrounded and with breakdowns: [results.csv](results.csv).
Read them with [footguns.md](footguns.md) beside.""",
        "## Methods and ratios",
        "![methods by ratio](results_comparison.png)",
        tables.comparison(rows),
        "## Statements checked",
        _statements(rows, search.band),
        "## Calibration: text alone against text plus image-text",
        "![calibration](results_calibration.png)",
        tables.calibration(rows),
        "### Uniform OBS against magnitude, calibrated on text",
        "Differences OBS - magnitude, paired by seed.",
        tables.against(rows, "sparsegpt", "magnitude", "text"),
        "### Uniform OBS against magnitude, calibrated on text plus image-text",
        tables.against(rows, "sparsegpt", "magnitude", "text_and_pairs"),
        "## The search on its own objective",
        "![search](results_search.png)",
        """Risk is the structural risk on the proxy data, of policies stitched from the database.
The risk of uniform is measured under the same projector as the best's.""",
        tables.searches(rows, search.band),
        "## The searched policy against uniform at the same number of zeros",
        f"""`{MATCHED}` is uniform OBS at exactly the sparsity that efficientllava reached with
the same seed. Differences efficientllava - uniform, paired by seed.""",
        tables.against(rows, "efficientllava", MATCHED, "text_and_pairs"),
        "## The ablations against the whole method",
        "Differences ablation - efficientllava, paired by seed; a negative accuracy says that "
        "the part left out helps.",
    ]
    for name in tables.SEARCHED[1:]:
        if any(row["method"] == name for row in rows):
            parts += [f"### {name}", tables.against(rows, name, "efficientllava", "text_and_pairs")]
    parts += ["## Accuracy by subject, context and grade", tables.breakdowns(rows)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _statements(rows: Sequence[Row], band: tuple[float, float]) -> str:
    """What must hold, with the count of cells in which it does."""
    obs = [
        gap
        for ratio in tables.ratios_of(rows)
        for gap in differences(
            chosen(rows, "sparsegpt", ratio, "text"), chosen(rows, "magnitude", ratio), "text_loss"
        )
    ]
    searched = [row for row in rows if "search" in row]
    wins = sum(
        row["search"]["best_risk"] < row["search"]["uniform_risk_final_projector"]
        for row in searched
    )
    held = sum(
        band[0] - 1e-6 <= row["search"]["lowest_mean_sparsity"] - row["ratio"]
        and row["search"]["highest_mean_sparsity"] - row["ratio"] <= band[1] + 1e-6
        for row in searched
    )
    pruned = [row for row in rows if "zeros_beyond_policy" in row]
    exact = sum(row["matrices_off_policy"] == 0 for row in pruned)
    lines = [
        (
            "OBS calibrated on text beats magnitude on held-out text",
            sum(gap < 0 for gap in obs),
            len(obs),
        ),
        ("the search beats uniform on its own objective", wins, len(searched)),
        ("every candidate of the search kept the budget's band", held, len(searched)),
        ("every matrix of the final model has exactly its policy's zeros", exact, len(pruned)),
    ]
    return "\n".join(f"- {what}: in {count} of {total} cells" for what, count, total in lines)


def _csv(rows: Sequence[Row]) -> str:
    """One line per cell; lists and policies are left out."""
    flat = []
    for row in rows:
        line = {k: v for k, v in row.items() if not isinstance(v, (dict, list))}
        for name, value in row.get("search", {}).items():
            if not isinstance(value, (dict, list)) and value is not None:
                line[f"search_{name}"] = value
        for part, score in row["breakdowns"].items():
            line[f"accuracy_{part}"] = score["accuracy"]
            line[f"n_{part}"] = score["n"]
        flat.append(line)
    first = ["seed", "method", "ratio", "calibration", "achieved_sparsity", "accuracy"]
    names = list(dict.fromkeys(first + [name for line in flat for name in line]))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return buffer.getvalue()
