"""Two versions side by side: parameters that differ, summaries, answers, policies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from efficientllava.errors import UserError
from efficientllava.reading import read_json
from efficientllava.report.decision.paired import Answers, Difference, paired
from efficientllava.report.decision.summary import PREFIX

PREDICTIONS, POLICY = "evaluate/predictions.jsonl", "search/policy.json"
MOST_MATRICES = 10
"""Matrices of two policies that are listed, those that differ most."""
NONE = "–"


@dataclass(frozen=True)
class Side:
    """What MLflow holds of one version.

    Attributes:
        parameters: as logged, by dotted name.
        summary: `summary/*` by name.
        words: the intervals that belong to it.
        policy: share of zeros by matrix; empty where the version has none.
    """

    title: str
    parameters: Mapping[str, str]
    summary: Mapping[str, float]
    words: Mapping[str, str]
    answers: Answers | None
    policy: Mapping[str, float]


@dataclass(frozen=True)
class Section:
    """A table: headings and lines of cells."""

    title: str
    headings: Sequence[str]
    lines: Sequence[Sequence[str]]


def read_side(client: Any, version: Any) -> Side:
    """Read a version's run.

    Raises:
        UserError: it has none, or it was deleted.
    """
    from mlflow.exceptions import MlflowException

    where = f"MLflow, registered model {version.name}, version {version.version}"
    if not version.run_id:
        raise UserError("has no run to be compared by", where=where)
    try:
        run = client.get_run(version.run_id)
    except MlflowException as error:
        raise UserError("its run was deleted", where=where) from error
    tags, metrics = run.data.tags, run.data.metrics
    return Side(
        f"{version.version}: {run.info.run_name}",
        run.data.params,
        {k.removeprefix(PREFIX): v for k, v in metrics.items() if k.startswith(PREFIX)},
        {k.removeprefix(PREFIX): v for k, v in tags.items() if k.startswith(PREFIX)},
        *_artifacts(client, version.run_id),
    )


def _artifacts(client: Any, run: str) -> tuple[Answers | None, dict[str, float]]:
    """The answers and the policy, as far as the run has them."""
    found = {
        f"{folder}/{Path(file.path).name}"
        for folder in ("evaluate", "search")
        for file in client.list_artifacts(run, folder)
    }
    answers, policy = None, {}
    with TemporaryDirectory() as folder:
        if PREDICTIONS in found:
            answers = Answers.read(Path(client.download_artifacts(run, PREDICTIONS, folder)))
        if POLICY in found:
            file = Path(client.download_artifacts(run, POLICY, folder))
            policy = read_json(file)["policy"]
    return answers, policy


def sections(one: Side, other: Side) -> list[Section]:
    """The comparison, a table a subject; the difference is the second minus the first."""
    return [
        _parameters(one, other),
        _summaries(one, other),
        _answers(one, other),
        *_policies(one, other),
    ]


def _parameters(one: Side, other: Side) -> Section:
    names = sorted(one.parameters.keys() | other.parameters.keys())
    lines = [
        [name, one.parameters.get(name, NONE), other.parameters.get(name, NONE)]
        for name in names
        if one.parameters.get(name) != other.parameters.get(name)
    ]
    return Section("Parameters that differ", ["parameter", one.title, other.title], lines)


def _summaries(one: Side, other: Side) -> Section:
    names = [n for n in {**one.summary, **other.summary} if not n.endswith("_se_percent")]
    lines = []
    for name in sorted(names):
        first, second = one.summary.get(name), other.summary.get(name)
        change = NONE  # of ratios, too: each has an interval of its own
        if first is not None and second is not None and name not in one.words:
            change = f"{second - first:+.4g}"
        lines.append([name, _cell(one, name), _cell(other, name), change])
    return Section("Summary", ["metric", one.title, other.title, "difference"], lines)


def _cell(side: Side, name: str) -> str:
    value = side.summary.get(name)
    if value is None:
        return NONE
    if (words := side.words.get(name)) is not None:
        return words
    error = side.summary.get(name.replace("_percent", "_se_percent"))
    if error is not None and name == "accuracy_percent":
        return f"{value:.2f} ± {error:.2f}"
    return f"{value:.5g}"


def _answers(one: Side, other: Side) -> Section:
    title = "Answers, question by question (± one standard error of the difference)"
    headings = ["", "difference", "questions"]
    if one.answers is None or other.answers is None:
        return Section(title, headings, [])
    rows: list[tuple[str, float, Difference | None]] = [
        ("accuracy, points", 100.0, paired(other.answers.right, one.answers.right)),
        ("answer loss, nats", 1.0, paired(other.answers.loss, one.answers.loss)),
    ]
    lines = [
        [name, f"{scale * found.value:+.3f} ± {scale * found.error:.3f}", str(found.n)]
        for name, scale, found in rows
        if found is not None
    ]
    return Section(title, headings, lines)


def _policies(one: Side, other: Side) -> list[Section]:
    """The mean share of zeros a block, and the matrices that differ most."""
    if not one.policy or not other.policy:
        return []
    blocks = [_by_block(side.policy) for side in (one, other)]
    names = list(dict.fromkeys([*blocks[0], *blocks[1]]))
    lines = [[name, *(_share(block.get(name)) for block in blocks)] for name in names]
    common = [name for name in one.policy if name in other.policy]
    changed = [name for name in common if one.policy[name] != other.policy[name]]
    changed.sort(key=lambda name: (-abs(one.policy[name] - other.policy[name]), name))
    title = f"Policies: {len(changed)} of {len(common)} matrices differ"
    if len(changed) > MOST_MATRICES:
        title += f", these {MOST_MATRICES} most"
    matrices = [
        [name, _share(one.policy[name]), _share(other.policy[name])]
        for name in changed[:MOST_MATRICES]
    ]
    return [
        Section("Policies: mean share of zeros a block", ["block", one.title, other.title], lines),
        Section(title, ["matrix", one.title, other.title], matrices),
    ]


def _by_block(policy: Mapping[str, float]) -> dict[str, float]:
    """The mean ratio of the matrices of each block, which a number in their names tells."""
    blocks: dict[str, list[float]] = {}
    for name, ratio in policy.items():
        found = re.search(r"\.(\d+)\.", name)
        blocks.setdefault(found[1] if found else name, []).append(ratio)
    return {block: sum(ratios) / len(ratios) for block, ratios in blocks.items()}


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"
