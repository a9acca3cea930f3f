"""Which faults are made: a list that a seed and a number of cases decide."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

MOMENTS = ("start", "middle", "end")
BEGIN, RECORDS = "(server)", "(records)"
"""Parts of a run that are no stage: before the first one, and from the last one to the exit."""
KILLS = ("flow", "group", "dvc", "stage", "host", "guard", "server")
"""Processes that are sent SIGKILL; `group` is the flow and all that share its process group."""
WITHOUT_STAGE = ("flow", "group", "guard", "server")
OTHERS = (
    "term",  # SIGTERM to the flow
    "freeze_server",  # SIGSTOP to Prefect's server of ours
    "file_limit",  # no file may grow above some bytes: the write ends in EFBIG
    "small_disk",  # folders on a file system of their own, which is full: ENOSPC
    "read_only",  # the same file system, which may be read alone: EROFS
    "wiped",  # MLflow's and Prefect's databases are gone, and stages are cached
    "mlflow_server",  # a configured MLflow server stops, and is there again at the restart
    "prefect_server",  # the same of a configured Prefect server
)


@dataclass(frozen=True)
class Case:
    """One fault, at one moment of one stage.

    Attributes:
        number: of the case; with the seed of the list it decides everything else.
        stage: as dvc.yaml calls it, or BEGIN or RECORDS.
        fault: a process of KILLS, or one of OTHERS.
        part: in [0, 1]: where between the bounds of the moment.
        records: whether MLflow's database is removed before, so that all is logged anew.
        deep: whether unfinished work and databases are removed before, too.
    """

    number: int
    stage: str
    moment: str
    fault: str
    part: float
    records: bool
    deep: bool

    @property
    def is_kill(self) -> bool:
        """Whether a process is sent SIGKILL."""
        return self.fault in KILLS


def plan(stages: Sequence[str], count: int, seed: int) -> list[Case]:
    """The first `count` cases of a seed.

    Every fifth case is one of OTHERS, the rest are kills. Each kind goes through all stages at one
    moment, then through all at the next: a beginning of the list covers as much as it can.
    """
    places = [BEGIN, *stages, RECORDS]
    cases: list[Case] = []
    kills = others = 0
    for number in range(count):
        draw = random.Random(f"{seed} {number}")
        if number % 5 == 4:
            fault = OTHERS[others % len(OTHERS)]
            # 7 and the number of stages have no common divisor: all pairs come, in time
            stage = stages[(7 * others + seed) % len(stages)]
            moment = MOMENTS[draw.randrange(3)]
            others += 1
        else:
            stage = places[kills % len(places)]
            moment = MOMENTS[(kills // len(places) + kills) % 3]
            fault = draw.choice(KILLS if stage in stages else WITHOUT_STAGE)
            kills += 1
        part, records, deep = draw.random(), draw.random() < 0.5, draw.random() < 0.5
        if fault == "wiped":
            stage, records = RECORDS, True
        cases.append(Case(number, stage, moment, fault, part, records, deep))
    return cases
