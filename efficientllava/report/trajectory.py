"""How a search went, round by round, from its history. No plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def trajectory(
    history: Sequence[Mapping[str, Any]],
) -> tuple[
    list[int], dict[str, list[float]], dict[str, list[float]], list[Mapping[str, Any]] | None
]:
    """Rounds, the best and the mean of each, and the uniform policy as last measured.

    The best has the lowest risk, or the lowest loss where the method decides by that.
    """
    names = ("risk", "loss", "complexity")
    decisive = str(history[0].get("decided_by", "risk")) if history else "risk"
    rounds = sorted({int(row["round"]) for row in history})
    best: dict[str, list[float]] = {name: [] for name in names}
    mean: dict[str, list[float]] = {name: [] for name in names}
    uniform: list[Mapping[str, Any]] = []
    latest: dict[tuple[float, ...], Mapping[str, Any]] = {}
    projector = 0
    uniform_row = next((row for row in history if row.get("origin") == "uniform"), None)
    for number in rounds:
        rows = [row for row in history if int(row["round"]) == number]
        # under a new projector only risks measured with it count
        if any(row.get("projector", 0) != projector for row in rows):
            projector, latest = rows[0].get("projector", 0), {}
        latest.update({tuple(row["policy"]): row for row in rows})
        leader = min(latest.values(), key=lambda row: row[decisive])
        for name in names:
            best[name].append(float(leader[name]))
            mean[name].append(float(np.mean([row[name] for row in rows])))
        if uniform_row is not None:
            uniform.append(latest.get(tuple(uniform_row["policy"]), uniform_row))
    return rounds, best, mean, uniform or None
