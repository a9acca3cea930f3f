"""Progress: lines in a log, a bar on a terminal, and a file that the flow follows."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from efficientllava.progress import Event
from tasks.runtime.progress import EVENTS, describe, reporter

ROUND = {"round": 2, "best_risk": 0.12345678, "evaluations_per_second": 3.456, "seconds_left": 61.7}


def test_measured_values_in_words() -> None:
    told = describe(Event("candidate", 3, 16, ROUND))
    assert told == "round 2  best risk 0.1235  3.46 evaluations/s  62 s left"
    assert "round 2" not in describe(Event("round", 2, 10, ROUND))


def test_a_log_gets_every_round_but_not_every_candidate() -> None:
    stream = io.StringIO()
    with reporter("search x 0.5", stream) as progress:
        for number in (1, 2):
            progress(Event("round_started", number, 2))
            for candidate in range(1, 17):
                progress(Event("candidate", candidate, 16, {"round": number}))
            progress(Event("round", number, 2, {"best_risk": 0.5}))
    lines = stream.getvalue().splitlines()
    rounds = [line for line in lines if "round " in line and "best risk" in line]
    assert rounds == [
        "search x 0.5: round 1/2  best risk 0.5",
        "search x 0.5: round 2/2  best risk 0.5",
    ]
    assert len(lines) <= 4


def test_every_event_is_in_the_file_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.jsonl"
    monkeypatch.setenv(EVENTS, str(path))
    with reporter("stage", io.StringIO()) as progress:
        progress(Event("block", 1, 2))
        progress(Event("block", 2, 2, {"error": 0.25}))
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["name"], row["done"], row["total"], row["values"]) for row in rows] == [
        ("block", 1, 2, {}),
        ("block", 2, 2, {"error": 0.25}),
    ]
    assert rows[0]["time"] <= rows[1]["time"]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with reporter("search", terminal) as progress:
        progress(Event("round_started", 1, 2))
        progress(Event("candidate", 1, 2, ROUND))
        progress(Event("round", 1, 2, {"best_risk": 0.5}))
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert "search: candidate" in shown and "62 s left" in shown
    assert "search: round" in shown and "1/2" in shown and "best risk 0.5" in shown
