"""The table says what the record files say, in every form."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from efficientllava.errors import UserError
from efficientllava.files import read_json, write_json
from efficientllava.report.comma_separated import comma_separated
from efficientllava.report.comparison import (
    breakdown_cells,
    cells,
    markdown,
    read_rows,
)
from efficientllava.report.page import write_report
from efficientllava.report.terminal import print_whole, rich_table
from tests.report.conftest import shown_times, timing

METHODS, RATIOS = ["sparsegpt", "efficientllava"], [0.5, 0.7]


def test_rows_are_dense_then_ratio_by_ratio(artifacts: Path) -> None:
    rows = read_rows(artifacts, METHODS, RATIOS)
    assert [row.name for row in rows] == [
        "dense",
        "sparsegpt 0.5",
        "efficientllava 0.5",
        "sparsegpt 0.7",
        "efficientllava 0.7",
    ]
    dense, first = rows[0], rows[1]
    assert dense.bytes_on_disk == 2_000_000
    assert (dense.parameters, first.parameters) == (499_980, 400_000)
    # the middle of 4.0, 4.2 and 4.4: dense is timed beside every pruned model
    assert dense.latencies["deepsparse"].prefill_ms == 4.2
    assert first.latencies["deepsparse"].prefill_speedup == 1.25
    assert "onnxruntime" not in first.latencies, "it was not available"
    assert first.search is None, "its policy is uniform"
    assert rows[2].search == {"best_risk": 0.1, "candidates": 20}


def test_csv_holds_every_number_unrounded(artifacts: Path) -> None:
    rows = read_rows(artifacts, METHODS, RATIOS)
    table = list(csv.DictReader(io.StringIO(comma_separated(rows))))
    told = table[1]
    record = read_json(artifacts / "evaluation" / "sparsegpt-0.5" / "scores.json")
    assert float(told["accuracy"]) == record["accuracy"]
    assert float(told["standard_error"]) == 0.00625 and int(told["n"]) == 3000
    for part, score in record["breakdowns"].items():
        assert float(told[f"accuracy_{part}"]) == score["accuracy"]
        assert float(told[f"standard_error_{part}"]) == score["standard_error"]
    assert float(told["deepsparse_prefill_ms"]) == 3.2
    assert table[4]["accuracy"] == "", "not evaluated"


def test_cells_are_rounded_and_dashes_stand_for_unknown(artifacts: Path) -> None:
    headings, body = cells(read_rows(artifacts, METHODS, RATIOS))
    first = dict(zip(headings, body[1], strict=True))
    assert first["accuracy %"] == "82.5 ± 0.6"
    assert first["zeros"] == "0.5000" and first["proxy loss"] == "0.1250"
    assert (
        first["DeepSparse prefill ms"] == "3.20 faster ×1.25 (1.20–1.30)" and first["MB"] == "2.00"
    )
    assert first["parameters"] == "400,000"
    assert body[4][2:] == ["–"] * (len(headings) - 2)
    headings, body = breakdown_cells(read_rows(artifacts, METHODS, RATIOS))
    assert headings == ["model", "NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12"]
    assert body[0][1:3] == ["90.0 ± 1.0", "89.0 ± 1.0"] and len(body) == 4


def noisy(artifacts: Path, name: str) -> None:
    """A graph that does not differ, timed on a busy machine."""
    path = artifacts / "export_metrics" / f"{name}.json"
    record = read_json(path)
    row = record["runtimes"]["deepsparse"] = timing(dense=33.5, pruned=10.0)
    for phase in ("prefill", "decode"):
        row[f"{phase}_speedup_interval"] = {"low": 0.27, "high": 6.23}
    write_json(path, record)


@pytest.mark.parametrize("ends", [{"low": 0.27, "high": 6.23}, {"low": 1.004, "high": 1.3}, None])
def test_noise_is_no_factor_in_any_form(
    artifacts: Path, tmp_path: Path, ends: dict[str, float] | None
) -> None:
    """Where the interval, as it is shown, holds 1, or where there is none."""
    for path in artifacts.glob("export_metrics/*.json"):
        noisy(artifacts, path.stem)
        record = read_json(path)
        for phase in ("prefill", "decode"):
            record["runtimes"]["deepsparse"][f"{phase}_speedup_interval"] = ends
        write_json(path, record)
    rows = write_report(artifacts, tmp_path / "report", METHODS, RATIOS)
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    console.print(rich_table(rows))
    texts = [console.file.getvalue()]  # type: ignore[attr-defined]
    texts += [
        (tmp_path / "report_timings" / name).read_text(encoding="utf-8")
        for name in ("table.md", "table.csv")
    ]
    texts.append(shown_times(tmp_path / "report"))
    for text in texts:
        assert "no difference" in text
        assert "×3.35" not in text and "3.35" not in text.replace("33.5", "")
    interval = "(no interval)" if ends is None else f"({ends['low']:.2f}–{ends['high']:.2f}, wide)"
    assert f"10.00 no difference measured {interval}" in texts[1] and interval in texts[3]
    cards = texts[3].partition('<div class="cards">')[2].partition("<p>")[0]
    assert cards.count("<b>no difference measured</b>") == 2 and cards.count(interval) == 2
    [first, *_] = [row for row in csv.DictReader(io.StringIO(texts[2])) if row["ratio"] == "0.5"]
    assert first["deepsparse_prefill_speedup"] == "no difference measured"
    assert first.get("deepsparse_prefill_speedup_low", "") == (
        "" if ends is None else str(ends["low"])
    )


def test_a_difference_is_a_factor_with_its_interval(artifacts: Path, tmp_path: Path) -> None:
    """The best card shows the fastest of the models that differ, not the largest ratio."""
    noisy(artifacts, "efficientllava-0.5")
    rows = write_report(artifacts, tmp_path / "report", METHODS, RATIOS)
    page = shown_times(tmp_path / "report")
    assert (
        "<b>faster ×1.25</b><span>fastest pruned model, prefill in DeepSparse: "
        "sparsegpt 0.5 (1.20–1.30)" in page
    )
    table = list(csv.DictReader(io.StringIO(comma_separated(rows))))
    assert table[0]["deepsparse_prefill_speedup"] == "", "dense is not held against itself"
    assert float(table[1]["deepsparse_prefill_speedup"]) == 1.25
    assert float(table[1]["deepsparse_prefill_speedup_high"]) == pytest.approx(1.3)


def test_markdown_has_one_cell_per_heading(artifacts: Path) -> None:
    tables = markdown(read_rows(artifacts, METHODS, RATIOS)).split("\n\n")
    assert len(tables) == 2
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_terminal_table_fits_80_columns(artifacts: Path) -> None:
    for name in ("sparsegpt-0.5", "efficientllava-0.5"):
        path = artifacts / "export_metrics" / f"{name}.json"
        record = read_json(path)
        record["runtimes"]["onnxruntime"] = record["runtimes"]["deepsparse"]
        write_json(path, record)
    # a slow machine: wide numbers must not squeeze the names
    path = artifacts / "export_metrics" / "sparsegpt-0.7.json"
    record = read_json(path)
    record["runtimes"]["onnxruntime"] = timing(dense=288.0, pruned=303.9)
    write_json(path, record)
    noisy(artifacts, "efficientllava-0.5")
    rows = read_rows(artifacts, [*METHODS, "evolution_without_upper_bound"], RATIOS)
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    console.print(rich_table(rows))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert "efficientllava " in text and "slower ×0.95" in text
    assert "faster ×1.25" in text and "82.5 ± 0.6" in text
    assert "(1.20–1.30)" in text and "(0.91–0.99)" in text
    assert "no difference" in text and "(0.27–6.23," in text and "×3.35" not in text


@pytest.mark.parametrize("terminal", [False, True])
def test_a_log_has_the_whole_table(artifacts: Path, terminal: bool) -> None:
    for name in ("sparsegpt-0.5", "efficientllava-0.5", "sparsegpt-0.7"):
        path = artifacts / "export_metrics" / f"{name}.json"
        record = read_json(path)
        for runtime in ("deepsparse", "onnxruntime"):
            record["runtimes"][runtime] = timing(dense=123456789012345.0, pruned=98765432109876.0)
        write_json(path, record)
    rows = read_rows(artifacts, METHODS, RATIOS)
    console = Console(width=80, file=io.StringIO(), force_terminal=terminal)
    print_whole(console, rich_table(rows))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    if terminal:
        assert max(len(line) for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()) <= 80
    else:
        assert "…" not in text and text.count("98765432109876") >= 3
        assert max(map(len, text.splitlines())) > 80


def test_no_records_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no records"):
        read_rows(tmp_path, METHODS, RATIOS)


def test_record_without_a_field_is_named(artifacts: Path) -> None:
    path = artifacts / "evaluation" / "dense" / "scores.json"
    record = read_json(path)
    del record["standard_error"]
    write_json(path, record)
    with pytest.raises(UserError, match="dense/scores.json: lacks a field.*standard_error"):
        read_rows(artifacts, METHODS, RATIOS)
