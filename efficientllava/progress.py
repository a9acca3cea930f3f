"""Progress of long work: one callable that takes an event.

The library emits events and knows nothing of terminals, Prefect or MLflow; `tasks` and
`flows` decide what to do with them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


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
    values: dict[str, float | int | str] = field(default_factory=dict)


Progress = Callable[[Event], None]


def silent(event: Event) -> None:
    """The progress callback of those who do not watch."""
