"""The table says what the record files say, in every form."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from efficientllava.errors import UserError
from efficientllava.files import read_json, write_json
from efficientllava.report.comparison import (
    breakdown_cells,
    cells,
    comma_separated,
    markdown,
    read_rows,
)
from efficientllava.report.terminal import print_whole, rich_table


def timing(dense: float, pruned: float) -> dict[str, Any]:
    """A runtime's part of export.json."""
    return {
        "available": True,
        "dense": {"prefill_ms": dense, "decode_ms": dense},
        "pruned": {"prefill_ms": pruned, "decode_ms": pruned},
        "prefill_speedup": dense / pruned,
        "decode_speedup": dense / pruned,
    }


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
    assert first["DeepSparse prefill ms"] == "3.20 ×1.25" and first["MB"] == "2.00"
    assert first["parameters"] == "400,000"
    assert body[4][2:] == ["–"] * (len(headings) - 2)
    headings, body = breakdown_cells(read_rows(artifacts, METHODS, RATIOS))
    assert headings == ["model", "NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12"]
    assert body[0][1:3] == ["90.0 ± 1.0", "89.0 ± 1.0"] and len(body) == 4


def test_markdown_has_one_cell_per_heading(artifacts: Path) -> None:
    tables = markdown(read_rows(artifacts, METHODS, RATIOS)).split("\n\n")
    assert len(tables) == 2
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_terminal_table_fits_80_columns(artifacts: Path) -> None:
    for name in ("sparsegpt-0.5", "efficientllava-0.5"):
        path = artifacts / "export" / name / "export.json"
        record = read_json(path)
        record["runtimes"]["onnxruntime"] = record["runtimes"]["deepsparse"]
        write_json(path, record)
    # a slow machine: wide numbers must not squeeze the names
    path = artifacts / "export" / "sparsegpt-0.7" / "export.json"
    record = read_json(path)
    record["runtimes"]["onnxruntime"] = timing(dense=288.0, pruned=303.9)
    write_json(path, record)
    rows = read_rows(artifacts, [*METHODS, "evolution_without_upper_bound"], RATIOS)
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    console.print(rich_table(rows))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert "efficientllava " in text and "303.9 ×0.95" in text
    assert "3.20 ×1.25" in text and "82.5 ± 0.6" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_a_log_has_the_whole_table(artifacts: Path, terminal: bool) -> None:
    for name in ("sparsegpt-0.5", "efficientllava-0.5", "sparsegpt-0.7"):
        path = artifacts / "export" / name / "export.json"
        record = read_json(path)
        for runtime in ("deepsparse", "onnxruntime"):
            record["runtimes"][runtime] = timing(dense=123456.0, pruned=98765.0)
        write_json(path, record)
    rows = read_rows(artifacts, METHODS, RATIOS)
    console = Console(width=80, file=io.StringIO(), force_terminal=terminal)
    print_whole(console, rich_table(rows))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    if terminal:
        assert max(len(line) for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()) <= 80
    else:
        assert "…" not in text and "98765 ×1.25" in text
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
