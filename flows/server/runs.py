"""The records of runs on Prefect's server: names and tags, runs that were killed, runs missed."""

from __future__ import annotations

import socket
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelled, Crashed, State

UNFINISHED = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


def workspace_tag(root: Path) -> str:
    """The tag of this workspace's runs on a shared server."""
    return f"workspace {socket.gethostname()}:{root}"


def begin_run(root: Path, current: UUID, name: str, tags: Collection[str]) -> int:
    """Name and tag this run, and mark unfinished earlier runs and tasks of this workspace Crashed.

    The caller holds the workspace's lock: whatever else claims to run here was killed. The record
    of a task may lack its end although its run's has one: their ways to the server are not the
    same.

    Returns the number of flow runs that were marked.
    """
    tag = workspace_tag(root)
    crashed: State[Any] = Crashed(message="its process was killed; found at the next start")
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(current)
        client.update_flow_run(current, name=name, tags={*run.tags, *tags, tag})
        here = FlowRunFilter(tags=FlowRunFilterTags(all_=[tag]))
        tasks = client.read_task_runs(
            flow_run_filter=here,
            task_run_filter=TaskRunFilter(
                state=TaskRunFilterState(type=TaskRunFilterStateType(any_=UNFINISHED))
            ),
        )
        for task in tasks:
            if task.flow_run_id != current:
                _crash_task(client, task.id)
        here.state = FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED))
        left = [run for run in client.read_flow_runs(flow_run_filter=here) if run.id != current]
        for run in left:
            client.set_flow_run_state(run.id, crashed, force=True)
    return len(left)


def drop_missed(current: FlowRun) -> int:
    """Cancel what else its schedule has made due: one run does the work of all that were missed.

    A run that somebody asked for stays.

    Returns the number of flow runs that were cancelled.
    """
    if current.deployment_id is None:
        return 0
    missed: State[Any] = Cancelled(
        name="Missed", message=f"was due while nothing ran; {current.name} does its work"
    )
    with get_client(sync_client=True) as client:
        due = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                deployment_id=FlowRunFilterDeploymentId(any_=[current.deployment_id]),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
                expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC)),
            )
        )
        due = [run for run in due if run.auto_scheduled and run.id != current.id]
        for run in due:
            client.set_flow_run_state(run.id, missed, force=True)
    return len(due)


def _crash_task(client: SyncPrefectClient, number: UUID) -> None:
    crashed: State[Any] = Crashed(message="its process was killed")
    # it may end on its own in the meantime
    with suppress(ObjectNotFound, PrefectHTTPStatusError):
        client.set_task_run_state(number, crashed, force=True)
