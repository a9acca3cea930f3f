"""The small file of each model for `dvc metrics`."""

from __future__ import annotations

from pathlib import Path

from efficientllava.files import read_json
from efficientllava.report.comparison import read_rows
from efficientllava.report.decision.summary import write_summaries
from tests.report.test_page import METHODS, RATIOS


def test_a_file_a_model_with_the_same_few_numbers(artifacts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "summary"
    write_summaries(folder, read_rows(artifacts, METHODS, RATIOS), 0.5)
    records = {path.stem: read_json(path) for path in folder.iterdir()}
    # efficientllava-0.7 has not run
    assert set(records) == {"best", "dense", "sparsegpt", "efficientllava", "sparsegpt-0.7"}
    assert records["sparsegpt"] == {
        "accuracy_percent": 82.5,
        "accuracy_se_percent": 0.625,
        "answer_loss_nats": 1.25,
        "text_loss_nats": 4.5,
        "decode_ms": 0.8,
        "prefill_ms": 3.2,
        "zeros_percent": 50.0,
    }
    assert records["dense"].keys() == records["sparsegpt"].keys()
    # as accurate and with the same losses: the first one
    best = {"best": "sparsegpt", "best_accuracy_percent": 82.5, "best_decode_ms": 0.8}
    assert records["best"] == best


def test_another_target_ratio_keeps_the_names(artifacts: Path, tmp_path: Path) -> None:
    """`dvc metrics diff` compares a method with itself, whose ratio has changed."""
    write_summaries(tmp_path / "summary", read_rows(artifacts, METHODS, [0.7]), 0.7)
    record = read_json(tmp_path / "summary" / "sparsegpt.json")
    assert record["accuracy_percent"] == 77.5
    assert read_json(tmp_path / "summary" / "best.json")["best_accuracy_percent"] == 77.5
