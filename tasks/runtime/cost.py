"""What a stage cost: .work/costs/STAGE.json, of the last time it ran.

Seconds of a run that was interrupted by a signal or an error count, unless it was killed.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from efficientllava.files import write_json

COSTS = Path(".work/costs")


@dataclass(frozen=True)
class StageCost:
    """Seconds of one stage.

    Attributes:
        started: when it began, in seconds since 1970.
        wall_seconds: of the clock, while it ran.
        cpu_seconds: of its processes on this machine.
        finished: whether the stage ran to its end.
    """

    started: float
    wall_seconds: float
    cpu_seconds: float
    finished: bool


@contextmanager
def measured(stage: str, root: Path = Path()) -> Iterator[None]:
    """Measure the block as a run of the stage."""
    before = read_cost(stage, root, finished=False)
    started, clock, used = time.time(), time.monotonic(), _cpu()
    finished = False
    try:
        yield
        finished = True
    finally:
        cost = StageCost(
            before.started if before else started,
            time.monotonic() - clock + (before.wall_seconds if before else 0.0),
            _cpu() - used + (before.cpu_seconds if before else 0.0),
            finished,
        )
        write_json(_path(stage, root), asdict(cost))


def read_cost(stage: str, root: Path = Path(), finished: bool = True) -> StageCost | None:
    """The cost of a stage, by its name in DVC; None where there is none of that kind."""
    try:
        cost = StageCost(**json.loads(_path(stage, root).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # never written, or by a process that was killed
        return None
    return cost if cost.finished == finished else None


def _path(stage: str, root: Path) -> Path:
    return root / COSTS / f"{stage}.json"


def _cpu() -> float:
    """Processor seconds of this process and of those it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
