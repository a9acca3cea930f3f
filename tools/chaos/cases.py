"""What is done to which stage: a list that a seed and a number of cases decide."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

MOMENTS = ("start", "middle", "end")
BEGIN, RECORDS = "(server)", "(records)"
"""Parts of a run that are no stage: before the first one, and from the last one to the exit."""
ENDING = ("flow", "group", "dvc", "stage", "host")
"""Processes that are sent SIGKILL and end the stage; `group` is the flow and its process group."""
OWN_SERVER = ("guard", "server", "freeze_server", "wiped", "small_disk", "read_only")
"""Faults of runs that start a Prefect server of their own."""
KILLS = (*ENDING, "guard", "server")
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
class Blow:
    """One thing that is done to a run, at one moment of a stage.

    Attributes:
        moment: of MOMENTS.
        fault: a process of KILLS, or one of OTHERS.
        part: in [0, 1]: where between the bounds of the moment, and how large a limit is.
    """

    moment: str
    fault: str
    part: float


@dataclass(frozen=True)
class Case:
    """One stage, and what is done to the runs in which it runs: one blow each, then a whole run.

    Attributes:
        number: of the case; with the seed of the list it decides everything else.
        stage: as dvc.yaml calls it, or BEGIN or RECORDS.
        blows: five kills, or one of OTHERS.
        records: whether MLflow's database is removed before, so that all is logged anew.
        deep: whether unfinished work and databases are removed before, too.
        shared: whether Prefect's server is one that runs beside, and not the flow's own.
    """

    number: int
    stage: str
    blows: tuple[Blow, ...]
    records: bool
    deep: bool
    shared: bool

    @property
    def fault(self) -> str:
        """The one of OTHERS; empty for kills."""
        return "" if self.blows[0].fault in KILLS else self.blows[0].fault


def _places(stages: Sequence[str]) -> list[str]:
    """Parts of a run: first one of each kind, of the last model, and then those of other models."""
    last = {stage.partition("@")[0]: stage for stage in stages}
    return [BEGIN, *last.values(), RECORDS, *(each for each in stages if each not in last.values())]


def plan(stages: Sequence[str], count: int, seed: int) -> list[Case]:
    """The first `count` cases of a seed.

    Two of three cases kill a process in each of five runs after each other, at every moment of
    the stage, and go through all stages; the third is one of OTHERS.
    """
    places = _places(stages)
    cases: list[Case] = []
    for number in range(count):
        draw = random.Random(f"{seed} {number}")
        kills, others = number - number // 3, number // 3
        if number % 3 == 2:
            fault = OTHERS[others % len(OTHERS)]
            # 7 and the number of stages have no common divisor: all pairs come, in time
            stage = RECORDS if fault == "wiped" else stages[(7 * others + seed) % len(stages)]
            blows = (Blow(draw.choice(MOMENTS), fault, draw.random()),)
        else:
            stage = places[kills % len(places)]
            names = ENDING if stage in stages else ENDING[:2]
            moments = sorted([*MOMENTS, *draw.choices(MOMENTS, k=2)], key=MOMENTS.index)
            blows = tuple(Blow(moment, draw.choice(names), draw.random()) for moment in moments)
            if kills % 3 == 0:  # the last one, because the run goes on and finishes the stage
                last = Blow(draw.choice(MOMENTS), draw.choice(OWN_SERVER[:2]), draw.random())
                blows = (*blows[:-1], last)
        own = any(blow.fault in OWN_SERVER for blow in blows)
        cases.append(
            Case(
                number,
                stage,
                blows,
                records=draw.random() < 0.3 or blows[0].fault == "wiped",
                deep=draw.random() < 0.5,
                shared=not own,
            )
        )
    return cases
