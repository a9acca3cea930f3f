"""A flow run on this workspace from the command line: checks, a server, the exit status."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect.exceptions import TerminationSignal
from prefect.states import State

from efficientllava.errors import UserError
from efficientllava.parameters import Parameters
from efficientllava.versions.connection import tracking_uri
from flows.runner.recording import RECORDING
from flows.runner.stages import USER_ERROR, PipelineFailure
from flows.server.server import prefect_server
from flows.tracking.servers import warn_of_remote
from flows.tracking.tracking import check_server
from flows.unchanged import recorded
from tasks.runtime.check import check_device
from tasks.runtime.stage import read_parameters, told
from tasks.runtime.workspace import workspace_lock


def _warm_up() -> None:
    """Import slow modules while the server starts, which takes longer."""
    import mlflow  # noqa: F401

    import efficientllava.report.comparison  # noqa: F401


def run_to_end(
    who: str,
    start: Callable[[], State[Any]],
    show: Callable[[Parameters], None],
    idle: Callable[[Parameters], bool] = lambda parameters: False,
) -> int:
    """Run a flow on this workspace, with a server, and return the exit status.

    Args:
        who: this run's name in the message to a second run.
        start: runs the flow.
        show: called when it completed.
        idle: says, before a server is started, that the flow has nothing to do.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        parameters = read_parameters()
        check_device(parameters)
        check_server(tracking_uri(parameters.tracking, Path.cwd()))
        with workspace_lock(who):
            if idle(parameters):
                show(parameters)
                return 0
            warn_of_remote(Path.cwd())
            threading.Thread(target=_warm_up, daemon=True).start()
            with recorded(Path.cwd()), prefect_server():
                state = RECORDING.run(start)
            if RECORDING.stopped is not None:
                raise RECORDING.stopped
    except (UserError, OSError, KeyboardInterrupt) as error:
        if (message := told(error)) is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else USER_ERROR
    except TerminationSignal as error:
        return 128 + error.signal
    if state.is_completed():
        show(parameters)
        return 0
    failure = state.result(raise_on_failure=False)
    print(f"error: {failure}", file=sys.stderr)
    return failure.status if isinstance(failure, PipelineFailure) else 1
