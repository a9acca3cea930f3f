"""The script that puts the decision on the report's page."""

from __future__ import annotations

import json
import re
from pathlib import Path

from efficientllava.report.decision.page import (
    SCRIPT,
    DecisionPage,
    Deployable,
    StageCosts,
    write_decision,
)
from efficientllava.report.decision.paired import Answers

ROOT = Path(__file__).parents[3]


def section(page: DecisionPage, folder: Path) -> str:
    script = write_decision(page, folder).read_text("utf-8")
    place, content = script.removesuffix(";\n").split(" = ", 1)
    assert place == 'document.getElementById("decision").innerHTML'
    return str(json.loads(content))


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_the_page_asks_for_the_script_beside_it() -> None:
    page = (ROOT / "efficientllava/report/templates/page.html").read_text("utf-8")
    assert f'<script src="../{SCRIPT}"></script>' in page and 'id="decision"' in page


def test_everything_is_on_it(tmp_path: Path) -> None:
    right = {"1": 1.0, "2": 1.0, "3": 0.0, "4": 1.0}
    answers = {
        "a-0.5": Answers(right, dict.fromkeys(right, 0.5)),
        "b-0.5": Answers(right | {"1": 0.0}, dict.fromkeys(right, 0.75)),
    }
    page = DecisionPage(
        "champion: version 3, a-0.5 (<the rule>)",
        {"commit": "abc1234"},
        [("runs compared", "http://host/#/experiments/1/runs")],
        [("a-0.5", "parity", "pass", "every runtime gave PyTorch's tokens")],
        [Deployable("checkpoint", "artifacts/pruned/a-0.5", 1.5, "efficientllava ask")],
        answers,
        [
            StageCosts("dense", {"evaluate": (2.0, 3.0)}),
            StageCosts("a-0.5", {"search": (10.0, 19.5), "evaluate": (2.0, 3.0), "export": None}),
        ],
    )
    html = section(page, tmp_path)
    assert "<the rule>" not in html and 'href="http://host/#/experiments/1/runs"' in html
    text = text_of(html)
    for words in (
        "champion: version 3",
        "commit abc1234",
        "a-0.5 parity pass every runtime",
        "artifacts/pruned/a-0.5 1.50",
        "a-0.5 − b-0.5 +25.00 ± 25.00 -0.2500 ± 0.0000 4",
        "dense 2.0 s (3.0 CPU s) – – 2.0 s (3.0 CPU s)",
        "a-0.5 2.0 s (3.0 CPU s) 10.0 s (19.5 CPU s) – 12.0 s (22.5 CPU s)",
    ):
        assert words in text, words


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    text = text_of(section(DecisionPage("no champion", {}), tmp_path))
    assert text == "Decision no champion"
