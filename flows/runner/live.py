"""The display of a running stage: lines in the log, a bar on a terminal, sub-tasks, artifacts.

A stage reports its progress as events. Where it announces a step with `NAME_started` and ends it
with `NAME` (a round of the search), that step becomes a Prefect task run of its own inside the
stage's, and the values it ended with become one row of the stage's table.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any, cast
from uuid import UUID

from prefect import get_run_logger, task
from prefect.artifacts import (
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.states import Cancelled, Completed, State

from efficientllava.progress import Event, Progress
from flows.runner.recording import RECORDING, STOPPED, stopped_state

STARTED = "_started"
ARTIFACT_SECONDS = 2.0
Values = dict[str, float | int | str]


class LiveView:
    """Follows the messages of one stage until it ends.

    Args:
        stage: the stage's name.
        messages: printed lines and events, in order of arrival.
        show: draws events on a terminal; None without one.
        on_step: called with (number, values) of every step that ended.
    """

    def __init__(
        self,
        stage: str,
        messages: Iterator[str | Event],
        show: Progress | None,
        on_step: Callable[[int, Values], None],
    ) -> None:
        self.stage, self._messages, self._show, self._on_step = stage, messages, show, on_step
        self.rows: list[Values] = []
        self._logger = get_run_logger()
        self._artifact: UUID | None = None
        self._artifact_at = 0.0
        self._step: Event | None = None
        self.stopped: BaseException | None = None

    def follow(self) -> None:
        """Read everything the stage says; steps run as sub-tasks of the task we are in."""
        while (event := self._next()) is not None:
            if event.name.endswith(STARTED):
                name = event.name.removesuffix(STARTED)
                step.with_options(name=name, task_run_name=f"{self.stage} {name} {event.done}")(
                    self, name
                )
                if self.stopped is not None:
                    raise self.stopped
        self._finish()

    def until(self, name: str) -> Event | None:
        """Read on until the step `name` ends; None when the stage ended first."""
        while (event := self._next()) is not None:
            if event.name == name:
                return event
        return None

    def _next(self) -> Event | None:
        """The next event, after logging the lines before it."""
        for message in self._messages:
            if isinstance(message, str):
                self._logger.info("%s", message)
                continue
            if self._show is not None:
                self._show(message)
            self._record(message)
            return message
        return None

    def _record(self, event: Event) -> None:
        """Move the stage's progress artifact, not more often than one can see."""
        if event.name.endswith(STARTED):
            self._step = event
        share = self._share(event)
        now = time.monotonic()
        if now - self._artifact_at < ARTIFACT_SECONDS and share < 100.0:
            return
        self._artifact_at = now
        if self._artifact is None:
            made = RECORDING.tell(
                create_progress_artifact,
                share,
                key=artifact_key(self.stage, "progress"),
                description=self.stage,
            )
            self._artifact = cast("UUID | None", made)
        else:
            RECORDING.tell(update_progress_artifact, self._artifact, share)

    def _share(self, event: Event) -> float:
        """How much of the stage is done, in percent; events inside a step count within it."""
        part = event.done / event.total if event.total else 0.0
        if self._step is not None and event.name + STARTED != self._step.name:
            within = 0.0 if event is self._step else part
            part = (self._step.done - 1 + within) / self._step.total if self._step.total else 0.0
        return min(100.0, max(0.0, 100.0 * part))

    def step_ended(self, event: Event) -> None:
        """Keep the row of a step and pass it on."""
        self.rows.append({event.name: event.done, **event.values})
        self._on_step(event.done, dict(event.values))

    def _finish(self) -> None:
        if self.rows:
            RECORDING.tell(
                create_table_artifact,
                [dict(row) for row in self.rows],
                key=artifact_key(self.stage, "steps"),
                description=f"What the steps of `{self.stage}` ended with",
            )


@task(cache_policy=NO_CACHE, persist_result=False)
def step(view: LiveView, name: str) -> State[Any]:
    """One announced step of a stage: runs as long as the step does in the stage's process."""
    try:
        event = view.until(name)
    except STOPPED as stop:
        view.stopped = stop
        return stopped_state(stop)
    if event is None:
        return Cancelled(message="the stage ended before this step did")
    view.step_ended(event)
    said = ", ".join(f"{key} {_short(value)}" for key, value in event.values.items())
    return Completed(message=said or None)


def _short(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def artifact_key(stage: str, suffix: str) -> str:
    """A Prefect artifact key: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", f"{stage}-{suffix}".lower()).strip("-")
