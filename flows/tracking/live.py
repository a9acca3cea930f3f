"""MLflow runs of models that are being made: opened, followed, ended, and taken up again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from math import isclose
from typing import Any

from efficientllava.errors import without_users
from flows.runner.graph import flatten
from flows.tracking.record import ModelRecord

CELL, WORKSPACE, FAILURE = "pipeline.cell", "pipeline.workspace", "pipeline.failure"
DIGEST = "pipeline.digest"
ROUND_PREFIX = "trajectory"
"""Of metrics by round; MLflow lists metrics by name, and `summary/` comes first."""
INTERRUPTED = "the pipeline was stopped"

Rounds = dict[str, dict[int, float]]
"""Name of a metric -> number of the round -> value."""


class LiveRuns:
    """The unfinished runs of one workspace in an experiment.

    A run that was interrupted is KILLED, one of which a stage failed is FAILED; the restart takes
    it up again, with the rounds that it holds, so that a model leaves one run behind however often
    it was stopped.
    """

    def __init__(self, client: Any, experiment: str, workspace: str, tags: dict[str, str]) -> None:
        self.client, self.experiment = client, experiment
        self.workspace, self.tags = workspace, tags
        self._open: dict[str, str] = {}  # cell -> id of its run
        self._rounds: dict[str, Rounds] = {}  # the same, what it holds of rounds

    def close_left_open(self) -> int:
        """End runs as KILLED that an earlier, killed pipeline of this workspace left running."""
        left = self._of_workspace("RUNNING")
        for run in left:
            self.client.set_terminated(run.info.run_id, status="KILLED")
        return len(left)

    def _of_workspace(self, status: str) -> list[Any]:
        # a path may hold quotes of both kinds, which no filter of MLflow takes
        runs, token = [], None
        while True:
            page = self.client.search_runs(
                [self.experiment],
                f"attributes.status = '{status}'",
                max_results=1000,
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            runs += [run for run in page if run.data.tags.get(WORKSPACE) == self.workspace]
            if (token := page.token) is None:
                return runs

    def _unfinished(self, cell: str) -> list[Any]:
        """The runs that interrupted or failed attempts at a model have left."""
        left = (*self._of_workspace("KILLED"), *self._of_workspace("FAILED"))
        tags = [(run, run.data.tags) for run in left]
        return [run for run, held in tags if held.get(CELL) == cell and DIGEST not in held]

    def begin(self, cell: str, started: float | None = None) -> str:
        """The run of a model that is being made: an unfinished one, or a new one.

        Args:
            started: when the model's first stage began, in seconds since 1970; now if None.
        """
        if cell in self._open:
            return self._open[cell]
        if left := self._unfinished(cell):
            run = left[0]
            number = str(run.info.run_id)
            self.client.update_run(number, status="RUNNING")
            for name, value in self.tags.items():
                self.client.set_tag(number, name, value)
            if FAILURE in run.data.tags:
                self.client.delete_tag(number, FAILURE)
            self._rounds[cell] = self.rounds_of(run)
        else:
            tags = {CELL: cell, WORKSPACE: self.workspace, **self.tags}
            created = self.client.create_run(
                self.experiment,
                run_name=cell,
                tags=tags,
                start_time=None if started is None else int(1000 * started),
            )
            number, self._rounds[cell] = str(created.info.run_id), {}
        self._open[cell] = number
        return number

    def replace(self, cell: str, started: float | None) -> str:
        """A new run in place of the open one, which holds what another model left."""
        self.client.delete_run(self._open.pop(cell))
        return self.begin(cell, started)

    def rounds_of(self, run: Any) -> Rounds:
        """What a run holds of a search's rounds."""
        names = [name for name in run.data.metrics if name.startswith(f"{ROUND_PREFIX}/")]
        return {
            name: {
                entry.step: entry.value
                for entry in self.client.get_metric_history(run.info.run_id, name)
            }
            for name in names
        }

    def log_round(self, cell: str, number: int, values: Mapping[str, Any]) -> None:
        """Log the values of a round, each once, however often it is reported."""
        if (run := self._open.get(cell)) is None or values.get("evaluated") == 0:
            return
        held = self._rounds[cell]
        metrics = {
            name: value
            for name, value in round_metrics(values).items()
            if number not in held.get(name, {})
        }
        log_metrics(self.client, run, metrics, number)
        for name, value in metrics.items():
            held.setdefault(name, {})[number] = value

    def contradicts(self, record: ModelRecord) -> bool:
        """Whether the open run of a model holds what this model cannot have: another one's.

        It was interrupted, and parameters or code were changed before the restart.
        """
        run = self.client.get_run(self._open[record.cell])
        parameters = logged_parameters(record)
        if any(parameters.get(name) != value for name, value in run.data.params.items()):
            return True
        own: Rounds = {}
        for number, values in record.rounds.items():
            for name, value in round_metrics(values).items():
                own.setdefault(name, {})[number] = value
        return any(
            step not in own.get(name, {}) or not isclose(own[name][step], value, rel_tol=1e-9)
            for name, steps in self.rounds_of(run).items()
            for step, value in steps.items()
        )

    def take(self, cell: str) -> str | None:
        """The open run of a model, which is no longer followed; None where there is none."""
        self._rounds.pop(cell, None)
        return self._open.pop(cell, None)

    def forget(self, cell: str) -> None:
        """Delete the open run of a model, and what attempts at it have left."""
        opened = self.take(cell)
        left = [str(run.info.run_id) for run in self._unfinished(cell)]
        for number in [*([opened] if opened else []), *left]:
            self.client.delete_run(number)

    def end(self, cell: str, cause: str, status: str) -> None:
        """End the open run of a model as FAILED or KILLED, naming the cause."""
        if run := self.take(cell):
            self.client.set_tag(run, FAILURE, cause)
            self.client.set_terminated(run, status=status)

    def interrupt(self) -> None:
        """End every open run as KILLED: the pipeline stops here."""
        for cell in list(self._open):
            self.end(cell, INTERRUPTED, "KILLED")


def round_metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a round by their names in MLflow."""
    return {
        f"{ROUND_PREFIX}/{name}": float(value)
        for name, value in flatten(values).items()
        if isinstance(value, int | float) and name != "round"
    }


def logged_parameters(record: ModelRecord) -> dict[str, str]:
    """The parameters of a model by their names in MLflow."""
    parameters = {"method": record.method, "ratio": record.ratio, **record.parameters}
    return {name: without_users(str(value)) for name, value in parameters.items()}


def log_metrics(client: Any, run: str, metrics: Mapping[str, float], step: int = 0) -> None:
    """Log metrics of one step at once."""
    from mlflow.entities import Metric

    now = int(1000 * time.time())
    entries = [Metric(name, value, now, step) for name, value in metrics.items()]
    if entries:
        client.log_batch(run, metrics=entries)
