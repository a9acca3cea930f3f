"""MM-Vet's scores from grades: six capabilities and their combinations.

Source: mm-vet_evaluator.py of yuweihao/MM-Vet (sums, means and rounding in its order).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field

from efficientllava.benchmarks.accuracy import mean
from efficientllava.benchmarks.mmvet.reading import CAPABILITIES, Sample
from efficientllava.benchmarks.rows import Row
from efficientllava.errors import UserError
from efficientllava.reading import checked

DECIMALS = 1
_ONLY = "only_"


class Judged(BaseModel):
    """What a grade file says beside the scores."""

    model: list[str]
    malformed: list[Annotated[int, Field(ge=0, le=10**6)]] = []


def judged(row: Row) -> Judged:
    """The judge's models and failures of one question.

    Raises:
        UserError: it has none, or they are something else.
    """
    value: Judged = checked(dict(row.values), Judged, row.where)
    return value


def grades_of(rows: Mapping[str, Row], runs: int | None) -> dict[str, list[float]]:
    """The scores of a grade file, by id, one for each run.

    Args:
        runs: how many are used; None for as many as every question has.

    Raises:
        UserError: a question has fewer, or a score is none in [0, 1].
    """
    least = min(len(_scores(row)) for row in rows.values())
    used = least if runs is None else runs
    if used > least or used == 0:
        few = min(rows.values(), key=lambda row: len(_scores(row)))
        raise UserError(f"has {least} grades, {max(used, 1)} are needed", where=few.where)
    return {identifier: _scores(row)[:used] for identifier, row in rows.items()}


def _scores(row: Row) -> list[float]:
    values = row.value("score")
    if not isinstance(values, list) or not all(
        isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= 1.0
        for value in values
    ):
        raise UserError("score must be a list of numbers in [0, 1]", where=row.where)
    return values


def score_grades(
    samples: Sequence[Sample], grades: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """Scores in all, by capability and by combination of capabilities.

    Args:
        grades: by id, in the order of the grade file (in which the official script sums).

    Returns:
        accuracy with the standard error over questions; "official" as the script rounds it, in
        percent, with the standard deviation over runs.
    """
    by_id = {sample.id: sample for sample in samples}
    runs = len(next(iter(grades.values())))
    counts: Counter[str] = Counter()
    for sample in samples:
        counts.update([*sample.capabilities, combination(sample.capabilities), "total"])
    sums = {name: [0.0] * runs for name in counts}
    members: dict[str, list[float]] = {name: [] for name in counts}
    for identifier, scores in grades.items():
        sample = by_id[identifier]
        for name in (*sample.capabilities, combination(sample.capabilities), "total"):
            members[name].append(sum(scores) / runs)
            for run, score in enumerate(scores):
                sums[name][run] += score
    percent = {name: np.array(values) / counts[name] * 100 for name, values in sums.items()}
    official = {name: _rounded(values.mean()) for name, values in percent.items()}
    names = [name for name in CAPABILITIES if name in counts]
    names += sorted(
        (name for name in counts if name.startswith(_ONLY)), key=lambda name: (-counts[name], name)
    )
    return {
        **mean(members["total"]),
        "breakdowns": {name: mean(members[name]) for name in names},
        "official": {
            **{name: official[name] for name in [*names, "total"]},
            "std": _rounded(percent["total"].std()),
            "runs": [_rounded(value) for value in percent["total"]],
        },
        "notes": [],
    }


def _rounded(value: Any) -> float:
    # numpy's rounding, as the script has it: it differs from Python's in the last place
    return float(np.round(np.float64(value), DECIMALS))


def combination(capabilities: frozenset[str]) -> str:
    """The name of a combination: "only_ocr_math"; of a single capability "only_rec".

    The official script's "rec" means both the capability and the combination, in two tables.
    """
    return _ONLY + "_".join(name for name in CAPABILITIES if name in capabilities)
