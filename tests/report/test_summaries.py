"""The small file of each model for `dvc metrics`."""

from __future__ import annotations

from pathlib import Path

from efficientllava.files import read_json
from efficientllava.report.comparison import read_rows
from efficientllava.report.summaries import write_summaries
from tests.report.test_page import METHODS, RATIOS


def test_a_file_a_model_with_the_same_few_numbers(artifacts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "summary"
    write_summaries(folder, read_rows(artifacts, METHODS, RATIOS), 0.5)
    records = {path.stem: read_json(path) for path in folder.iterdir()}
    assert set(records) == {
        *("best", "dense", "sparsegpt", "efficientllava"),
        *("sparsegpt-0.7", "efficientllava-0.7"),
    }
    assert records["sparsegpt"] == {
        "ratio": 0.5,
        "accuracy": 0.825,
        "error": 0.00625,
        "zeros": 0.5,
        "text_loss": 4.5,
        "answer_loss": 1.25,
        "prefill_ms": 3.2,
        "decode_ms": 0.8,
    }
    assert records["dense"].keys() == records["sparsegpt"].keys()
    assert records["efficientllava-0.7"] == {"ratio": 0.7}, "it has not run"
    # as accurate and with the same losses: the first one
    assert records["best"] == {"best": "sparsegpt", "best_accuracy": 0.825, "best_decode_ms": 0.8}


def test_another_target_ratio_keeps_the_names(artifacts: Path, tmp_path: Path) -> None:
    """`dvc metrics diff` compares a method with itself, whose ratio has changed."""
    write_summaries(tmp_path / "summary", read_rows(artifacts, METHODS, [0.7]), 0.7)
    record = read_json(tmp_path / "summary" / "sparsegpt.json")
    assert record["ratio"] == 0.7 and record["accuracy"] == 0.775
    assert read_json(tmp_path / "summary" / "best.json")["best_accuracy"] == 0.775
