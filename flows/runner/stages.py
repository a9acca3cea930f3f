"""One Prefect task a stage: DVC decides whether it runs, `dvc repro` runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Cancelled, Completed, Failed, State

from efficientllava.errors import UserError
from flows.runner.console import terminal_bar
from flows.runner.graph import Changes, Node, restore_outputs
from flows.runner.host import StageHost
from flows.runner.live import LiveView, Values
from flows.runner.process import StageProcess, reproduce
from flows.runner.recording import STOPPED, stopped_state
from tasks.runtime.progress import SHOWN
from tasks.runtime.stage import told

USER_ERROR = 2


class StageFailure(Exception):
    """A stage ended with an error.

    Attributes:
        stage: its name.
        status: exit status of its command: 2 when the user can mend the cause.
        cause: its last message.
    """

    def __init__(self, stage: str, status: int, cause: str) -> None:
        self.stage, self.status, self.cause = stage, status, cause
        super().__init__(f"{stage} failed with exit status {status}: {cause}")


class PipelineFailure(Exception):
    """Some steps failed; those that do not depend on them have run."""

    def __init__(self, failures: list[StageFailure], not_run: list[str]) -> None:
        self.failures, self.not_run = failures, not_run
        lines = [
            f"{failure.stage} failed with exit status {failure.status}; its message is above"
            for failure in failures
        ]
        if not_run:
            lines.append(f"not run because of that: {', '.join(not_run)}")
        super().__init__("\n".join(lines))

    @property
    def status(self) -> int:
        """2 when the user can mend every failure."""
        user_errors = all(failure.status == USER_ERROR for failure in self.failures)
        return USER_ERROR if user_errors else 1


@dataclass(frozen=True, eq=False)
class Watchers:
    """Callbacks for a running stage.

    Attributes:
        starts: called with the stage when it is about to run.
        step: called with the stage, number and values of every step that ended.
    """

    starts: Callable[[Node], None]
    step: Callable[[Node, int, Values], None]


class Call:
    """The arguments of a stage task; opaque to Prefect, which copies dataclasses.

    Attributes:
        stopped: what ended the run during the stage: SIGTERM or Ctrl-C.
    """

    def __init__(
        self,
        root: Path,
        changes: Changes,
        host: StageHost,
        watchers: Watchers,
        environment: Callable[[Node], dict[str, str]],
    ) -> None:
        self.root, self.changes, self.host = root, changes, host
        self.watchers, self.environment = watchers, environment
        self.stopped: BaseException | None = None


@task(cache_policy=NO_CACHE, persist_result=False)
def run_stage(node: Node, blocked_by: list[str], call: Call) -> State[Any]:
    """Run a stage if anything it depends on has changed.

    Returns:
        A state named Cached, Completed, Restored (DVC had run it on the same inputs before),
        Failed (its data is a `StageFailure`), NotRun when a stage before it failed, or Cancelled
        when the run was stopped.
    """
    logger = get_run_logger()
    if blocked_by:
        return Cancelled(name="NotRun", message=f"not run because of {', '.join(blocked_by)}")
    try:
        reason = call.changes.why(node.name)
    except UserError as error:
        return _failed(StageFailure(node.name, USER_ERROR, str(error)))
    if reason is None:
        return Completed(name="Cached", message="nothing it depends on has changed")
    call.changes.stage_runs()
    logger.info("%s runs because: %s", node.name, reason)
    call.watchers.starts(node)
    try:
        stage = _follow(node, call)
    except STOPPED as stop:  # raised out of here, it would make the task Crashed
        restore_outputs(call.root, node.name)
        call.stopped = stop
        return stopped_state(stop)
    except BaseException as error:
        restore_outputs(call.root, node.name)
        if not isinstance(error, UserError | OSError) or (message := told(error)) is None:
            raise
        return _failed(StageFailure(node.name, USER_ERROR, message))
    if stage.status:
        for path in restore_outputs(call.root, node.name):
            logger.info("%s: the last finished version is in place again", path)
        return _failed(StageFailure(node.name, stage.status, stage.message))
    if not stage.ran:
        return Completed(name="Restored", message="DVC had run it on the same inputs before")
    return Completed(message=reason)


def _follow(node: Node, call: Call) -> StageProcess:
    """Run the stage's process to its end, with everything it says followed."""

    def on_step(number: int, values: Values) -> None:
        call.watchers.step(node, number, values)

    with terminal_bar(node.name) as show:
        variables = call.environment(node) | ({} if show is None else {SHOWN: "true"})
        with reproduce(call.host, call.root, node, variables) as stage:
            LiveView(node.name, stage.messages(), show, on_step).follow()
    return stage


def _failed(failure: StageFailure) -> State[Any]:
    return Failed(message=f"exit status {failure.status}: {failure.cause}", data=failure)
