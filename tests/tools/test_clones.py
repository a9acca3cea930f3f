"""The table of two clones' outputs."""

from __future__ import annotations

from tools.clones import table


def test_only_times_may_differ() -> None:
    one = {"model/a": "1", "model/b": "2", "summary/x.json": "3", "parameters.json": "4"}
    lines, equal = table(one, one | {"summary/x.json": "5"})
    assert equal and lines[2:] == [
        "| model | 2 | 2 |  |",
        "| parameters.json | 1 | 1 |  |",
        "| summary | 1 | 0 | x.json |",
    ]
    lines, equal = table(one, one | {"model/b": "6"})
    assert not equal and "| model | 2 | 1 | b |" in lines
    assert not table(one, {**one, "model/c": "7"})[1], "a file that the other lacks"
    assert not table(one, {**one, "parameters.json": "8"})[1]
