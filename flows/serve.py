"""Serve the pipeline to Prefect: `python -m flows.serve --cron "0 3 * * *"` in the clone.

Serves a deployment on the configured Prefect server and runs the flow in this workspace when it
is due or asked for, until it is stopped. Several machines: see prefect.yaml and docs/pipeline.md.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

import anyio
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.flows import EntrypointType
from prefect.runner import Runner
from prefect.schedules import Cron, Schedule
from prefect.settings import PREFECT_API_URL
from pydantic import ValidationError

from efficientllava.errors import UserError
from flows.form import Form, add_fields, checked_values, form_of
from flows.pipeline import pipeline
from flows.runner.stages import USER_ERROR
from flows.server.server import prefect_server

EMPTY = Form()
PATIENCE = 10.0
"""Seconds that the server has to pause a schedule at the end."""


def schedule(cron: str, timezone: str) -> Schedule:
    """The schedule, checked before anything is served.

    Raises:
        UserError: it is no cron expression, or the time zone is unknown.
    """
    try:
        CronSchedule(cron=cron, timezone=timezone)
    except (ValidationError, ValueError) as error:
        raise UserError(
            f"{cron!r} in time zone {timezone!r} is no schedule", where="--cron, --timezone"
        ) from error
    return Cron(cron, timezone=timezone)


class OrderlyRunner(Runner):
    """Prefect's runner, which SIGTERM ends in order.

    Prefect's own leaves its loop in the middle: the schedule stays active, and runs pile up until
    somebody starts it again.
    """

    def handle_sigterm(self, *unused: Any) -> None:
        """Let the loop pause the schedule, end the running flow and return."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(lambda: asyncio.ensure_future(self._end()))

    async def cancel_all(self) -> None:
        """End the runs that work."""
        await self._cancellation_manager.cancel_all(
            "stopped by SIGTERM to what serves it: the next run resumes"
        )

    async def _end(self) -> None:
        self._logger.info("SIGTERM: the schedule is paused, and a run that works is ended")
        try:
            with anyio.move_on_after(PATIENCE) as waiting:
                await self._pause_schedules()
            if waiting.cancelled_caught:
                self._logger.warning("the server does not answer: the schedule stays active")
        finally:
            self.pause_on_shutdown = False
            await self.astop()


def serve(due: Schedule | None, name: str, form: Form = EMPTY) -> None:
    """Serve until stopped. A run that is due while the last one still works is left out.

    Args:
        due: None: runs are only made on demand.
        form: the fields that runs have when nobody says otherwise.

    Raises:
        UserError: no server is configured or it does not answer; parameters cannot work.
    """
    if not PREFECT_API_URL.value():
        raise UserError(
            "schedules need a permanent Prefect server",
            where="PREFECT_API_URL",
            remedy="run `prefect server start` beside this, and "
            "`export PREFECT_API_URL=http://127.0.0.1:4200/api`",
        )
    checked_values(Path.cwd(), form)  # report errors now, not at night
    with prefect_server():
        runner = OrderlyRunner(name=name, limit=1, pause_on_shutdown=True)
        # by its name: each run is a process of its own, which reads the code as it is then
        deployment = pipeline.to_deployment(
            name,
            schedule=due,
            paused=False,  # the last end has paused it
            concurrency_limit=ConcurrencyLimitConfig(
                limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
            ),
            parameters=form.fields,
            tags=["efficientllava"],
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        assert isinstance(deployment, RunnerDeployment)
        runner.add_deployment(deployment)
        print(f"serving pipeline/{name}; Ctrl-C or SIGTERM pauses its schedule and ends it")
        asyncio.run(runner.start())


def main() -> int:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cron", help='when, e.g. "0 3 * * *": at 3 every night; else on demand')
    parser.add_argument("--timezone", default="UTC", help="time zone of --cron")
    parser.add_argument("--name", default="scheduled", help="name of the deployment")
    add_fields(parser)
    given = parser.parse_args()
    try:
        due = None if given.cron is None else schedule(given.cron, given.timezone)
        serve(due, given.name, form_of(given))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
