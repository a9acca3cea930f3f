"""The paper's misprints that docs/method.md names: found by counting."""

from __future__ import annotations

from pathlib import Path

import pytest

from efficientllava.report.experiments.paper import (
    PARTS,
    SQA_7B,
    TABLE3,
    TABLE4,
    PaperRow,
)

AVERAGE = "Average"
PAGE = Path(__file__).parents[2] / "docs" / "method.md"
QUESTIONS = {
    **dict(zip(PARTS, (2252, 889, 1100, 2046, 2017, 1435, 2724, 1517), strict=True)),
    AVERAGE: 4241,
}
"""Of ScienceQA's test split, by column of table 3."""
SECTION = PAGE.read_text(encoding="utf-8").partition("\n## 10. Known slips")[2]
MISPRINTS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in SECTION.splitlines()
    if line.startswith("| LLaVA-")
]
"""Model, method, ratio, column, printed and likely value."""


def corrected(row: PaperRow) -> dict[str, float]:
    """The cells of a row with the misprinted ones replaced."""
    cells = {**dict(zip(PARTS, row.parts, strict=True)), AVERAGE: row.accuracy}
    for model, method, ratio, column, printed, likely in MISPRINTS:
        if (model, method.lower(), float(ratio)) == (row.model, row.method, row.ratio):
            assert cells[column] == float(printed)
            cells[column] = float(likely)
    return cells


def right_answers(cells: dict[str, float]) -> dict[str, int]:
    return {name: round(cells[name] * count / 100) for name, count in QUESTIONS.items()}


def adds_up(cells: dict[str, float]) -> bool:
    """Each cell is a share of its questions; subjects and grades give the average."""
    right = right_answers(cells)
    shares = all(
        abs(100 * right[name] / count - cells[name]) <= 0.00501 for name, count in QUESTIONS.items()
    )
    subjects, grades = sum(right[p] for p in PARTS[:3]), sum(right[p] for p in PARTS[6:])
    return shares and subjects == grades == right[AVERAGE]


def test_four_cells_are_named() -> None:
    assert len(MISPRINTS) == 4


@pytest.mark.parametrize("row", TABLE3, ids=lambda row: f"{row.model}-{row.method}-{row.ratio}")
def test_every_row_adds_up_without_its_misprint(row: PaperRow) -> None:
    printed = {**dict(zip(PARTS, row.parts, strict=True)), AVERAGE: row.accuracy}
    named = corrected(row) != printed
    assert adds_up(printed) != named
    assert adds_up(corrected(row))


@pytest.mark.parametrize(("benchmark", "published"), [("MM-Vet", "31.1"), ("LLaVA-Bench", "65.4")])
def test_method_page_names_the_slips_of_table_4(benchmark: str, published: str) -> None:
    dense = next(row for row in TABLE4[benchmark] if row.method == "dense")
    [item] = [line for line in SECTION.split("\n- ") if benchmark in line.partition(":")[0]]
    assert f"{dense.accuracy:.2f}" in item and published in item


def test_method_page_names_the_other_slips() -> None:
    dense = next(row for row in TABLE3 if row.model != SQA_7B and row.method == "dense")
    assert f"{dense.accuracy:.2f}" in SECTION and "66.8" in SECTION
