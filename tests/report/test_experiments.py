"""The experiments' tables: means over seeds, the paper's numbers in columns of their own."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from efficientllava.report.comparison import Latency, Row, Score
from efficientllava.report.experiments.paper import PARTS, TABLE1, TABLE3, TABLE4, V15_7B
from efficientllava.report.experiments.statistics import Measured, accuracy_of, models_of
from efficientllava.report.experiments.tables import (
    LAYOUTS,
    ablation_table,
    benchmark_table,
    overview_table,
    search_table,
    write_experiment,
)
from efficientllava.report.page import _experiments


def row(method: str, ratio: float, accuracy: float) -> Row:
    score = Score(accuracy, 0.01, 400)
    return Row(
        method,
        ratio,
        achieved_sparsity=ratio,
        text_loss=5.0,
        answer_nll=1.0,
        score=score,
        breakdowns=dict.fromkeys(PARTS, score),
        bytes_on_disk=1_000_000,
        latencies={"deepsparse": Latency(10.0, 1.0, 1.5, 0.9, (1.4, 1.6), (0.7, 1.1))},
    )


def models(*seeds: int) -> list[Measured]:
    return [
        Measured(seed, row(method, ratio, accuracy + 0.02 * seed))
        for seed in seeds
        for method, ratio, accuracy in (
            ("dense", 0.0, 0.8),
            ("sparsegpt", 0.5, 0.7),
            ("efficientllava", 0.5, 0.75),
        )
    ]


def line_of(table: str, method: str) -> list[str]:
    [line] = [x for x in table.splitlines() if x.startswith(f"| {method} |")][:1]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_mean_and_error_are_over_seeds() -> None:
    found = accuracy_of([each for each in models(0, 1, 2) if each.row.method == "sparsegpt"])
    assert found is not None
    assert found.value == pytest.approx(72.0)
    assert found.error == pytest.approx(2.0 / math.sqrt(3))  # of 70, 72, 74


def test_a_single_seed_has_the_error_over_questions() -> None:
    found = accuracy_of(models(0)[:1])
    assert found is not None and (found.value, found.error) == (80.0, 1.0)


def test_the_paper_s_numbers_have_columns_of_their_own() -> None:
    table = ablation_table(models(0, 1), TABLE1)
    assert line_of(table, "efficientllava") == [
        "efficientllava", "0.5", "0.5000 ± 0.0000", "76.00 ± 1.00", "2", "0.50", "83.05",
    ]  # fmt: skip
    assert line_of(table, "dense")[-2:] == ["–", "–"]
    assert "paper, LLaVA-SQA-7B: accuracy %" in table


def test_settings_are_lines_of_their_own_and_dense_counts_once() -> None:
    measured = [
        replace(each, setting=(("obs.calibration", name),))
        for seed in (0, 1)
        for name in ("text", "text_and_pairs")
        for each in models(seed)
    ]
    keys = [("dense", 0.0)]
    for name in ("text", "text_and_pairs"):
        keys += [(f"sparsegpt {name}", 0.5), (f"efficientllava {name}", 0.5)]
    assert sorted(models_of(measured)) == sorted(keys)
    assert all(len(rows) == 2 for rows in models_of(measured).values())
    assert line_of(overview_table(measured), "sparsegpt text")[-1] == "2"


def test_searches_are_compared_with_uniform_under_the_last_projector() -> None:
    def searched(seed: int, best: float, uniform: float) -> Measured:
        summary = {
            "best_risk": best,
            "uniform_risk": 9.0,
            "uniform_risk_final_projector": uniform,
            "lowest_mean_sparsity": 0.5,
            "highest_mean_sparsity": 0.51 + seed / 100,
            "candidates": 20 + seed,
            "projector_rounds_kept": seed,
        }
        return Measured(seed, replace(row("efficientllava", 0.5, 0.7), search=summary))

    table = search_table([*models(0, 1), searched(2, 0.1, 0.2), searched(3, 0.2, 0.2)])
    assert line_of(table, "efficientllava") == [
        "efficientllava", "0.5", "0.2000 ± 0.0000", "0.1500 ± 0.0500", "1 of 2", "22.5 ± 0.5",
        "0.5000", "0.5400", "2.5 ± 0.5", "2",
    ]  # fmt: skip
    assert "sparsegpt" not in table


def test_table4_has_methods_down_and_ratios_across() -> None:
    table = benchmark_table(models(0), TABLE4, "demo")
    assert line_of(table, "sparsegpt") == ["sparsegpt", "80.00 ± 1.00", "70.00 ± 1.00"]
    vizwiz = table[table.index("VizWiz") :]
    assert line_of(vizwiz, "efficientllava") == ["efficientllava", "50.05", "50.28"]
    assert V15_7B in vizwiz


def test_table4_has_every_benchmark_that_was_measured() -> None:
    measured = [
        Measured(0, replace(each.row, benchmarks={"vizwiz": Score(0.5, 0.01, 100)}))
        for each in models(0)
    ]
    table = benchmark_table(measured, TABLE4, "demo")
    further = table[table.index("`vizwiz`") :]
    assert line_of(further, "sparsegpt") == ["sparsegpt", "50.00 ± 1.00", "50.00 ± 1.00"]


def test_printed_averages_of_table3() -> None:
    """A few cells of the paper, read from it again."""
    found = {(r.model[6], r.method, r.ratio): r for r in TABLE3}
    assert found["S", "efficientllava", 0.5].accuracy == 83.05
    assert found["v", "sparsegpt", 0.4].parts[PARTS.index("G7-12")] == 63.13
    assert all(len(r.parts) == len(PARTS) for r in TABLE3)
    assert len(TABLE3) == 18


@pytest.mark.parametrize("name", ["figure1", "methods"])
def test_speedups_have_their_interval_over_seeds(name: str) -> None:
    """The mean ratio between the mean ends; one seed without an interval leaves none."""
    measured = models(0, 1)
    wider = Latency(10.0, 1.0, 1.7, 0.9, (1.5, 1.9), (0.5, 1.3))
    measured[1] = replace(
        measured[1], row=replace(measured[1].row, latencies={"deepsparse": wider})
    )
    cells = line_of(LAYOUTS[name](measured, "demo"), "sparsegpt")
    assert "faster ×1.60 (1.45–1.75, wide)" in cells
    assert "no difference measured (0.60–1.20, wide)" in cells
    bare = replace(measured[1].row, latencies={"deepsparse": Latency(10.0, 1.0, 1.7, 0.9)})
    measured[1] = replace(measured[1], row=bare)
    cells = line_of(LAYOUTS[name](measured, "demo"), "sparsegpt")
    assert cells.count("no difference measured (no interval)") == 2


def grid(seed: int) -> list[Measured]:
    return [
        Measured(
            seed,
            row("efficientllava", 0.4, 0.6 + 0.001 * n + 0.0001 * s),
            (("proxy.segments", n), ("proxy.segment_length", s)),
        )
        for n in (16, 64)
        for s in (64, 256)
    ]


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_experiment_writes_table_csv_and_plot(name: str, tmp_path: Path) -> None:
    measured = grid(0) + grid(1) if name == "figure3" else models(0, 1)
    folder = tmp_path / "experiments" / name
    write_experiment(folder, name, f"Title of {name}", "the lead", measured, "demo")
    lines = list(csv.DictReader((folder / "table.csv").open()))
    assert len(lines) == len(measured)
    assert {line["seed"] for line in lines} == {"0", "1"}
    assert float(lines[-1]["accuracy"]) == measured[-1].row.score.accuracy  # type: ignore[union-attr]
    with Image.open(folder / "plot.png") as plot:
        assert plot.width > 400
    first = (folder / "plot.png").read_bytes()
    write_experiment(folder, name, f"Title of {name}", "the lead", measured, "demo")
    assert (folder / "plot.png").read_bytes() == first
    [part] = _experiments(tmp_path / "experiments")
    assert part.title == f"Title of {name}" and "plot.png" not in part.markdown


def test_grid_has_segments_down_and_lengths_across(tmp_path: Path) -> None:
    table = LAYOUTS["figure3"](grid(0), "demo")
    assert line_of(table, "n = 64") == ["n = 64", "67.04 ± 1.00", "68.96 ± 1.00"]
