"""Progress of long work: one callable that takes an event.

The library emits events and knows nothing of terminals, Prefect or MLflow; `tasks` and
`flows` decide what to do with them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Event:
    """One step of long work.

    Attributes:
        name: the kind of work: "training", "block", "candidate", "round", "question", ...
        done, total: how far it is, in units of `name`.
        values: measured at this step (losses, evaluations per second, ...).
    """

    name: str
    done: int
    total: int
    values: Mapping[str, float | int | str] = field(default_factory=dict)


Progress = Callable[[Event], None]


def silent(event: Event) -> None:
    """The progress callback of those who do not watch."""


LONG = 3600.0
"""Seconds above which questions announce how long they take."""


def announce_if_long(asked: int, seconds: float, left: int) -> None:
    """Warn that questions take hours, after a trial of the first ones.

    Args:
        asked: questions of the trial, which took `seconds`.
        left: questions that follow.
    """
    each = seconds / max(asked, 1)
    if left * each > LONG:
        logger.warning(
            "%d questions are left and the first %d took %.1f s each: about %.1f hours",
            left,
            asked,
            each,
            left * each / 3600,
        )
