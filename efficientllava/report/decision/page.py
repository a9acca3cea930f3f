"""The section of report.html about the decision: champion, checks, deployment, differences, cost.

It differs from run to run and the page does not, so it lies beside the page, in a script.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from efficientllava.files import write_text
from efficientllava.report.comparison import number
from efficientllava.report.decision.paired import Answers, Difference, paired
from efficientllava.report.html import Table, templates

SCRIPT = "decision.js"
"""The file beside the report's folder from which the page shows the decision."""


@dataclass(frozen=True)
class Deployable:
    """Something to deploy.

    Attributes:
        command: that puts it to work.
    """

    what: str
    path: str
    megabytes: float | None
    command: str


@dataclass(frozen=True)
class StageCosts:
    """What a model cost: (wall seconds, CPU seconds) by stage; None where one did not run here."""

    model: str
    stages: Mapping[str, tuple[float, float] | None]


@dataclass(frozen=True)
class DecisionPage:
    """All of the section.

    Attributes:
        said: the decision in one sentence.
        facts: date, commit, machine ... by name.
        links: (what, address).
        checks: (model, check, result, reason).
        answers: of every model at the target ratio, the best first.
    """

    said: str
    facts: Mapping[str, str]
    links: Sequence[tuple[str, str]] = ()
    checks: Sequence[tuple[str, str, str, str]] = ()
    deploy: Sequence[Deployable] = ()
    answers: Mapping[str, Answers] = field(default_factory=dict)
    costs: Sequence[StageCosts] = ()


def write_decision(page: DecisionPage, folder: Path) -> Path:
    """Write the script that puts the section into its place on the page."""
    said, _, rule = page.said.partition(" (")
    section = (
        templates()
        .get_template("decision.html")
        .render(
            page=page,
            said=said,
            rule=rule.removesuffix(")"),
            passed=sum(result == "pass" for _, _, result, _ in page.checks),
            checks=Table(["model", "check", "result", "reason"], page.checks),
            deploy=_deploy(page.deploy),
            differences=differences(page.answers),
            costs=_costs(page.costs),
        )
    )
    path = folder / SCRIPT
    place = 'document.getElementById("decision").innerHTML'
    write_text(path, f"{place} = {json.dumps(section)};\n")
    return path


def differences(answers: Mapping[str, Answers]) -> Table:
    """Every model minus every later one, question by question, ± one standard error."""
    names, lines = list(answers), []
    for index, one in enumerate(names):
        for other in names[index + 1 :]:
            right = paired(answers[one].right, answers[other].right)
            loss = paired(answers[one].loss, answers[other].loss)
            questions = "–" if right is None else str(right.n)
            lines.append(
                [f"{one} − {other}", _told(right, 100.0, 2), _told(loss, 1.0, 4), questions]
            )
    headings = ["models", "accuracy, points", "answer loss, nats", "questions"]
    return Table(headings, lines)


def _told(difference: Difference | None, scale: float, digits: int) -> str:
    if difference is None:
        return "–"
    value, error = scale * difference.value, scale * difference.error
    return f"{value:+.{digits}f} ± {error:.{digits}f}"


def _deploy(deploy: Sequence[Deployable]) -> Table:
    lines = [
        [item.what, item.path, number(item.megabytes, ",.2f"), item.command] for item in deploy
    ]
    return Table(["what", "where", "MB", "how"], lines)


def _costs(costs: Sequence[StageCosts]) -> Table:
    stages = list(dict.fromkeys(stage for cost in costs for stage in cost.stages))
    lines = []
    for cost in costs:
        known = [value for value in cost.stages.values() if value is not None]
        total = (sum(wall for wall, _ in known), sum(cpu for _, cpu in known)) if known else None
        cells = [_seconds(cost.stages.get(stage)) for stage in stages]
        lines.append([cost.model, *cells, _seconds(total)])
    return Table(["model", *stages, "all"], lines)


def _seconds(value: tuple[float, float] | None) -> str:
    return "–" if value is None else f"{value[0]:,.1f} s ({value[1]:,.1f} CPU s)"
