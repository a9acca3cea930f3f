"""Run the pipeline on a schedule: `python -m flows.serve --cron "0 3 * * *"` in the clone.

Serves a deployment on the configured Prefect server and runs the flow in this workspace when it
is due, until it is stopped. Several workspaces or machines: see prefect.yaml and docs/team.md.
"""

from __future__ import annotations

import argparse
import sys

from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.flows import EntrypointType
from prefect.schedules import Cron, Schedule
from prefect.settings import PREFECT_API_URL
from pydantic import ValidationError

from efficientllava.errors import UserError
from flows.pipeline import pipeline
from flows.runner.stages import USER_ERROR
from flows.server.server import prefect_server
from tasks.runtime.stage import read_parameters


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


def serve(due: Schedule, name: str) -> None:
    """Serve until stopped. A run that is due while the last one still works is left out."""
    if not PREFECT_API_URL.value():
        raise UserError(
            "schedules need a permanent Prefect server",
            where="PREFECT_API_URL",
            remedy="run `prefect server start` beside this, and "
            "`export PREFECT_API_URL=http://127.0.0.1:4200/api`",
        )
    read_parameters()  # report errors now, not at night
    with prefect_server():
        pipeline.serve(
            name=name,
            schedule=due,
            limit=1,
            global_limit=ConcurrencyLimitConfig(
                limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
            ),
            entrypoint_type=EntrypointType.MODULE_PATH,
        )


def main() -> int:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cron", required=True, help='when, e.g. "0 3 * * *": at 3 every night')
    parser.add_argument("--timezone", default="UTC", help="time zone of --cron")
    parser.add_argument("--name", default="scheduled", help="name of the deployment")
    arguments = parser.parse_args()
    try:
        serve(schedule(arguments.cron, arguments.timezone), arguments.name)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
