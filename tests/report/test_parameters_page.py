"""docs/parameters.md is what the parameters' own descriptions say."""

from __future__ import annotations

from pathlib import Path

from efficientllava.report.parameters_page import parameters_page

PAGE = Path(__file__).parents[2] / "docs" / "parameters.md"


def test_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == parameters_page(), (
        "run: python -m efficientllava.report.parameters_page docs/parameters.md"
    )


def test_bounds_and_choices_are_shown() -> None:
    page = parameters_page()
    row = next(line for line in page.splitlines() if "`obs.damping`" in line)
    assert "number, >0, ≤1" in row and "`0.01`" in row
    row = next(line for line in page.splitlines() if "`search.patience`" in line)
    assert "integer, ≥1, ≤1,000,000 or null" in row and "`null`" in row
    assert "`text`, `text_and_pairs`" in page


def test_candidates_of_later_rounds_are_explained() -> None:
    """From round 2 on the survivors take their places among the candidates of a round."""
    row = next(line for line in parameters_page().splitlines() if "`search.candidates`" in line)
    assert "from round 2 on `candidates - survivors` new policies are evaluated" in row
