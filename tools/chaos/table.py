"""The table of what was disturbed and what survived, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tools.chaos.cases import KILLS, MOMENTS

Row = Mapping[str, Any]


def table(rows: list[Row], seed: int) -> str:
    """Tables by stage and moment, by fault, and of every blow with its moment.

    A blow that was missed, because the run was over, does not count.
    """
    rows = sorted(rows, key=lambda row: int(row["number"]))
    blows = [
        {**blow, "stage": row["stage"], "failed": bool(row["problems"])}
        for row in rows
        for blow in row["blows"]
        if not blow["missed"]
    ]
    kills = [blow for blow in blows if blow["fault"] in (*KILLS, "wiped")]
    commits = dict.fromkeys(str(row["commit"]) for row in rows)
    others = [blow for blow in blows if blow not in kills]
    lines = [
        f"Commit {', '.join(commits)}, seed {seed}, {len(rows)} cases: {_cell(kills)} kills "
        f"survived, and {_cell(others)} other faults.",
        "",
        f"| kills | {' | '.join(MOMENTS)} | all |",
        "| --- | --- | --- | --- | --- |",
    ]
    for stage in dict.fromkeys(str(blow["stage"]) for blow in kills):
        own = [blow for blow in kills if blow["stage"] == stage]
        cells = [_cell(blow for blow in own if blow["moment"] == moment) for moment in MOMENTS]
        lines.append(f"| `{stage}` | {' | '.join(cells)} | {_cell(own)} |")
    lines += ["", "| fault | survived |", "| --- | --- |"]
    for fault in dict.fromkeys(str(blow["fault"]) for blow in blows):
        lines.append(f"| {fault} | {_cell(blow for blow in blows if blow['fault'] == fault)} |")
    lines += ["", "| case | stage | what was done, and when | MLflow wiped | work wiped | |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        marks = ["yes" if row[name] else "" for name in ("records", "deep")]
        outcome = "failed" if row["problems"] else "survived"
        when = "; ".join(f"{blow['moment']}: {blow['when']}" for blow in row["blows"])
        lines.append(
            f"| {row['number']} | `{row['stage']}` | {when} | {' | '.join(marks)} | {outcome} |"
        )
    for row in rows:
        if row["problems"]:
            lines += ["", f"case {row['number']}, {row['stage']}:"]
            lines += [f"- {problem}" for problem in row["problems"]]
    return "\n".join(lines)


def _cell(blows: Iterable[Row]) -> str:
    listed = list(blows)
    survived = sum(not blow["failed"] for blow in listed)
    return f"{survived} of {len(listed)}" if listed else ""
