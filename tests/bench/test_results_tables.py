"""The results' page says what the cells say: means, standard errors, pairs, statements."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from bench import tables
from bench.cells import MATCHED, Unit
from bench.page import write_page
from efficientllava.parameters import Parameters
from efficientllava.report.statistics import chosen, differences, mean


def cell(seed: int, method: str, ratio: float, accuracy: float, **more: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "seed": seed,
        "method": method,
        "ratio": ratio,
        "calibration": "text_and_pairs",
        "achieved_sparsity": ratio,
        "accuracy": accuracy,
        "standard_error": 0.01,
        "n": 100,
        "answer_nll": 1 - accuracy,
        "text_loss": 4 - accuracy,
        "proxy_kl": 0.1,
        "seconds": 36.0,
        "breakdowns": {
            part: {"accuracy": accuracy, "standard_error": 0.1, "n": 9}
            for part in ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12")
        },
    }
    if method != "dense":
        row |= {"zeros_beyond_policy": 0, "matrices_off_policy": 0, "chosen": "sequential"}
    return row | more


def search(best: float, uniform: float, highest: float) -> dict[str, Any]:
    return {
        "best_risk": best,
        "uniform_risk": uniform,
        "uniform_risk_final_projector": uniform,
        "lowest_mean_sparsity": 0.5,
        "highest_mean_sparsity": highest,
        "candidates": 20,
        "projector_rounds_kept": 1,
        "best_risks": [uniform, best],
        "best_losses": [0.2, 0.1],
    }


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    made = []
    for seed, dense, magnitude, obs, best in ((0, 0.9, 0.6, 0.7, 0.80), (1, 0.8, 0.7, 0.7, 0.70)):
        made += [
            cell(seed, "dense", 0.0, dense),
            cell(seed, "magnitude", 0.5, magnitude),
            cell(seed, "sparsegpt", 0.5, obs),
            cell(seed, MATCHED, 0.5, obs),
            cell(seed, "sparsegpt", 0.5, obs - 0.05, calibration="text"),
            cell(
                seed,
                "efficientllava",
                0.5,
                best,
                # in seed 1 the search does not win and leaves the band
                search=search(*((0.1, 0.2, 0.51) if seed == 0 else (0.2, 0.2, 0.52))),
            ),
        ]
    made[1]["matrices_off_policy"] = 1
    return made


def test_mean_and_standard_error() -> None:
    """0.1 and 0.3: deviation sqrt(0.02), over the root of two seeds 0.1."""
    found = mean([0.1, 0.3])
    assert found is not None and (found.value, found.n) == (pytest.approx(0.2), 2)
    assert found.error == pytest.approx(0.1)
    assert found.told(1, 100) == "20.0 ± 10.0" and found.told(1, 100, sign=True)[0] == "+"
    single = mean([0.1])
    assert single is not None and single.told(2) == "0.10"
    assert mean([]) is None


def test_differences_are_paired_by_seed(rows: list[dict[str, Any]]) -> None:
    searched = chosen(rows, "efficientllava", 0.5)
    uniform = list(reversed(chosen(rows, MATCHED, 0.5)))
    assert differences(searched, uniform, "accuracy") == pytest.approx([0.1, 0.0])
    assert differences(searched, uniform[:1], "accuracy") == pytest.approx([0.0])


def test_calibrations_are_not_mixed(rows: list[dict[str, Any]]) -> None:
    assert [row["accuracy"] for row in chosen(rows, "sparsegpt", 0.5, "text")] == pytest.approx(
        [0.65, 0.65]
    )
    assert "| 0.5 | sparsegpt | text | 3.350 ± 0.000" in tables.calibration(rows)


def test_page_counts_what_held_and_what_did_not(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    write_page(rows, Parameters(), tmp_path, "the command", {"cores": "2"})
    page = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "magnitude on held-out text: in 1 of 2 cells" in page
    assert "the search beats uniform on its own objective: in 1 of 2 cells" in page
    assert "kept the budget's band: in 1 of 2 cells" in page
    assert "exactly its policy's zeros: in 9 of 10 cells" in page
    assert "(left the band)" in page and "`the command`" in page
    assert "| efficientllava | 0.5 | 2 | 0.5000 ± 0.0000 | 0.1000 ± 0.0000 | 3.250" in page
    for name in ("comparison", "calibration", "search"):
        assert (tmp_path / f"results_{name}.png").stat().st_size > 10_000
    table = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert len(table) == len(rows)
    assert float(table[5]["search_best_risk"]) == 0.1


def test_cells_have_names_of_their_own() -> None:
    units = [Unit(s, r, c, ()) for s in (0, 1) for r in (0.5, 0.55) for c in ("text", "pairs")]
    names = {unit.cell(method) for unit in units for method in ("a", "b")}
    assert len(names) == 16
