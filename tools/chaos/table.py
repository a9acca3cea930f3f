"""The table of what was disturbed and what survived, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tools.chaos.cases import KILLS, MOMENTS

Row = Mapping[str, Any]


def table(rows: list[Row], commit: str, seed: int) -> tuple[str, bool]:
    """The tables by stage and moment and by fault, and whether every case survived."""
    rows = [row for row in rows if not row["missed"]]
    kills = [row for row in rows if row["fault"] in KILLS or row["fault"] == "wiped"]
    lines = [
        f"Commit {commit}, seed {seed}: {len(kills)} kills, {_survived(kills)} survived; "
        f"{len(rows) - len(kills)} other faults, {_survived(rows) - _survived(kills)} survived.",
        "",
        "| stage | start | middle | end | of these kills |",
        "| --- | --- | --- | --- | --- |",
    ]
    for stage in dict.fromkeys(str(row["stage"]) for row in sorted(rows, key=_number)):
        own = [row for row in rows if row["stage"] == stage]
        cells = [_cell(row for row in own if row["moment"] == moment) for moment in MOMENTS]
        killed = _cell(row for row in own if row in kills)
        lines.append(f"| `{stage}` | {' | '.join(cells)} | {killed} |")
    lines += ["", "| fault | survived |", "| --- | --- |"]
    for fault in dict.fromkeys(str(row["fault"]) for row in sorted(rows, key=_number)):
        lines.append(f"| {fault} | {_cell(row for row in rows if row['fault'] == fault)} |")
    for row in sorted(rows, key=_number):
        if row["problems"]:
            what = f"{row['stage']} {row['moment']} {row['fault']}"
            lines += ["", f"case {row['number']}, {what}, {row['when']}:"]
            lines += [f"- {problem}" for problem in row["problems"]]
    return "\n".join(lines), _survived(rows) == len(rows)


def moments(rows: list[Row]) -> str:
    """Every case with its moment: a line each, as Markdown."""
    lines = ["| case | stage | moment | what was done | records wiped | work wiped | outcome |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for row in sorted(rows, key=_number):
        outcome = "missed" if row["missed"] else "failed" if row["problems"] else "survived"
        marks = ["yes" if row[name] else "" for name in ("records", "deep")]
        cells = [row["number"], f"`{row['stage']}`", row["moment"], row["when"], *marks, outcome]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _number(row: Row) -> int:
    return int(row["number"])


def _survived(rows: Iterable[Row]) -> int:
    return sum(not row["problems"] for row in rows)


def _cell(rows: Iterable[Row]) -> str:
    listed = list(rows)
    return f"{_survived(listed)} of {len(listed)}" if listed else ""
