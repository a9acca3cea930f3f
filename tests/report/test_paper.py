"""The paper's misprints: found by counting, named in paper.py and in docs/method.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from efficientllava.report.experiments.paper import (
    AVERAGE,
    MISPRINTS,
    PARTS,
    SQA_7B,
    TABLE3,
    TABLE4,
    Misprint,
    PaperRow,
)

PAGE = Path(__file__).parents[2] / "docs" / "method.md"
QUESTIONS = {
    **dict(zip(PARTS, (2252, 889, 1100, 2046, 2017, 1435, 2724, 1517), strict=True)),
    AVERAGE: 4241,
}
"""Of ScienceQA's test split, by column of table 3."""


def corrected(row: PaperRow) -> dict[str, float]:
    """The cells of a row with the misprinted ones replaced."""
    cells = {**dict(zip(PARTS, row.parts, strict=True)), AVERAGE: row.accuracy}
    for slip in MISPRINTS:
        if (slip.model, slip.method, slip.ratio) == (row.model, row.method, row.ratio):
            assert cells[slip.column] == slip.printed
            cells[slip.column] = slip.likely
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


@pytest.mark.parametrize("row", TABLE3, ids=lambda row: f"{row.model}-{row.method}-{row.ratio}")
def test_every_row_adds_up_without_its_misprint(row: PaperRow) -> None:
    printed = {**dict(zip(PARTS, row.parts, strict=True)), AVERAGE: row.accuracy}
    named = corrected(row) != printed
    assert adds_up(printed) != named
    assert adds_up(corrected(row))


def section() -> str:
    return PAGE.read_text(encoding="utf-8").partition("\n## 10. Known slips")[2]


def as_line(slip: Misprint) -> str:
    method = {"dense": "dense", "sparsegpt": "SparseGPT", "efficientllava": "EfficientLLaVA"}
    ratio = f"{slip.ratio:g}"
    return (
        f"| {slip.model} | {method[slip.method]} | {ratio} | {slip.column} "
        f"| {slip.as_printed} | {slip.likely:.2f} |"
    )


def test_method_page_names_the_misprints() -> None:
    lines = [line for line in section().splitlines() if line.startswith("| LLaVA-")]
    assert len(MISPRINTS) == 4
    assert lines == [as_line(slip) for slip in MISPRINTS]


@pytest.mark.parametrize(("benchmark", "published"), [("MM-Vet", "31.1"), ("LLaVA-Bench", "65.4")])
def test_method_page_names_the_slips_of_table_4(benchmark: str, published: str) -> None:
    dense = next(row for row in TABLE4[benchmark] if row.method == "dense")
    [item] = [line for line in section().split("\n- ") if benchmark in line.partition(":")[0]]
    assert f"{dense.accuracy:.2f}" in item and published in item


def test_method_page_names_the_other_slips() -> None:
    dense = next(row for row in TABLE3 if row.model != SQA_7B and row.method == "dense")
    assert f"{dense.accuracy:.2f}" in section() and "66.8" in section()
