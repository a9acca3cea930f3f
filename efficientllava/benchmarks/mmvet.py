"""MM-Vet: open questions, graded by a judge; six capabilities and their combinations.

Source: mm-vet_evaluator.py of yuweihao/MM-Vet (sums, means and rounding in its order).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from efficientllava.benchmarks.accuracy import mean
from efficientllava.benchmarks.records import Record, has_parquet, hub_rows, is_local, picture
from efficientllava.benchmarks.rows import Row
from efficientllava.errors import UserError
from efficientllava.files import read_json

CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
DECIMALS = 1
_ONLY = "only_"


@dataclass(frozen=True)
class Sample(Record):
    """One question; `answer` separates parts by <AND> and alternatives by <OR>."""

    answer: str
    capabilities: frozenset[str]


def read_samples(source: str | Path, split: str = "test") -> list[Sample]:
    """The questions, in the order of mm-vet.json.

    Args:
        source: a folder with mm-vet.json and images/, or a hub id of parquet records.
        split: "test", or "bard" for the subset of bard_set.json.

    Raises:
        UserError: naming the record that cannot be used.
    """
    if not is_local(source) or (
        not (Path(source).expanduser() / "mm-vet.json").is_file()
        and has_parquet(Path(source).expanduser())
    ):
        rows = hub_rows(str(source), None, split)
        return [_sample(row.identity("question_id"), row, None) for row in rows]
    folder = Path(source).expanduser()
    values = read_json(folder / "mm-vet.json")
    if not isinstance(values, dict) or not all(isinstance(each, dict) for each in values.values()):
        raise UserError("is no mapping from id to record", where=str(folder / "mm-vet.json"))
    wanted = read_json(folder / "bard_set.json") if split == "bard" else values
    return [
        _sample(key, Row(value, f"{folder / 'mm-vet.json'}, {key}"), folder / "images")
        for key, value in values.items()
        if key in wanted
    ]


def _sample(identifier: str, row: Row, images: Path | None) -> Sample:
    listed = row.value("capability")
    names = [name.strip() for name in listed.split(",")] if isinstance(listed, str) else listed
    if not isinstance(names, list) or not names or set(names) - set(CAPABILITIES):
        raise UserError(
            f"capability {listed!r} names others than {', '.join(CAPABILITIES)}", where=row.where
        )
    image = picture(row.value("image"), row.where) if images is None else None
    return Sample(
        id=identifier,
        text=row.text("question"),
        image=images / row.text("imagename") if images is not None else image,
        answer=row.text("answer"),
        capabilities=frozenset(names),
    )


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
        isinstance(value, int | float) and 0.0 <= value <= 1.0 for value in values
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
