"""MLflow: one run per model, one version per run, and the champion.

A run is keyed by the digest of its content, so that logging the same model again does
nothing, and logging it to an empty server writes it anew.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import httpx

from efficientllava.errors import UserError
from efficientllava.parameters import TrackingParameters
from efficientllava.report.decision.summary import Summary
from efficientllava.versions.connection import tracking_uri
from flows.runner.loopback import request
from flows.tracking.live import (
    DIGEST,
    LiveRuns,
    log_metrics,
    logged_parameters,
    round_metrics,
)
from flows.tracking.moved import follow_clone
from flows.tracking.record import ModelRecord
from flows.tracking.registry import MEASURED, Decision, Registry, compared_numbers, note
from flows.tracking.servers import check_artifacts, check_database, usual_artifacts
from flows.tracking.store import make_whole
from flows.tracking.summaries import VIEW, colour_of, cost_of, shared_view, summaries

BATCH = 100  # parameters that MLflow takes at once
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment: MLflow opens its runs, and not its page for agents."""
AGAIN = "start again: no stage runs twice"


@dataclass
class Tracking:
    """The experiment and registered model of one pipeline run.

    Args:
        parameters: the section `tracking` of params.yaml.
        root: the workspace.
        tags: put on every run, e.g. the link to the Prefect run.

    Attributes:
        unfinished: where a half-made database was put, in whose place a new one is; None usually.
        live: the runs of models that are being made.
        registry: the registered model.
    """

    parameters: TrackingParameters
    root: Path
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Connect, and create the experiment and the registered model where they are missing.

        Raises:
            UserError: the server does not answer, or the store cannot be opened.
        """
        self.uri = uri = tracking_uri(self.parameters, self.root)
        check_server(uri)
        # MLflow's own default is some minutes of silent retries
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        # it prints a traceback for every error that it raises
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        from mlflow import MlflowClient

        check_database(uri)
        with usable(f"tracking.uri {uri}", "correct tracking.uri in params.yaml"):
            self.unfinished = make_whole(uri)
            follow_clone(uri)
            self.client = MlflowClient(uri, registry_uri=uri)
            self.client.search_experiments(max_results=1)
        with usable(f"tracking.experiment {self.parameters.experiment}", "give it another name"):
            self.experiment = self._experiment(self.parameters.experiment)
            place = self.client.get_experiment(self.experiment).artifact_location
        check_artifacts(place, uri)
        name = self.parameters.registered_model
        with usable(f"tracking.registered_model {name}", "give it another name"):
            self.registry = Registry(self.client, self.parameters)
        self.live = LiveRuns(self.client, self.experiment, str(self.root), self.tags)

    def _experiment(self, name: str) -> str:
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            place = self.parameters.artifacts or usual_artifacts(self.uri)
            return str(self.client.create_experiment(name, artifact_location=place, tags=KIND))
        number = str(experiment.experiment_id)
        if experiment.lifecycle_stage != "active":
            raise UserError(
                "the experiment was deleted, and MLflow keeps its name",
                where=f"MLflow, experiment {name} ({number})",
                remedy=f"`mlflow experiments restore --experiment-id {number}` with "
                f"MLFLOW_TRACKING_URI={self.uri}, or give tracking.experiment another name",
            )
        return number

    def close_left_open(self) -> int:
        """See `LiveRuns.close_left_open`.

        Raises:
            UserError: MLflow cannot be used.
        """
        with usable(f"tracking.uri {self.uri}", "end the program that holds the database"):
            return self.live.close_left_open()

    def known(self, record: ModelRecord) -> str | None:
        """The id of the run in which exactly this model is logged and registered; None if none."""
        for run in self._finished(record):
            whole = _output_tags(record).items() <= run.data.tags.items()
            if whole and self.registry.holds(run.info.run_id):
                return str(run.info.run_id)
        return None

    def _finished(self, record: ModelRecord) -> list[Any]:
        query = f"attributes.status = 'FINISHED' and tags.`{DIGEST}` = '{record.digest}'"
        return list(self.client.search_runs([self.experiment], query, max_results=50))

    def log(self, record: ModelRecord) -> tuple[str, bool]:
        """Log a finished model and register it, unless exactly this was logged before.

        Returns:
            The id of its run, and whether anything in it is new.
        """
        known = self._finished(record)
        if known:
            self.live.forget(record.cell)  # ran again, and gave exactly the same
            run = known[0].info.run_id
            new = not _output_tags(record).items() <= known[0].data.tags.items()
            if new:
                self._write(run, record)  # the same model, timed anew
        else:
            started = min((cost.started for cost in record.costs), default=None)
            run = self.live.begin(record.cell, started)
            if self.live.contradicts(record):
                run = self.live.replace(record.cell, started)
            self._write(run, record)
            self.live.take(record.cell)
            new = True
        if new:
            self.client.set_terminated(run, status="FINISHED", end_time=self._end(run, record))
        self.registry.register(run, record)
        return run, new

    def _end(self, run: str, record: ModelRecord) -> int | None:
        """When a run ends that lasts as long as the model's own stages, in ms; None for now."""
        if (cost := cost_of(record)) is None:
            return None
        return int(self.client.get_run(run).info.start_time + 1000 * cost.wall_seconds)

    def _write(self, run: str, record: ModelRecord) -> None:
        from mlflow.entities import Param

        entries = [Param(name, value) for name, value in logged_parameters(record).items()]
        for start in range(0, len(entries), BATCH):
            self.client.log_batch(run, params=entries[start : start + BATCH])
        held = self.live.rounds_of(self.client.get_run(run))
        for number, values in record.rounds.items():
            missing = {
                name: value
                for name, value in round_metrics(values).items()
                if number not in held.get(name, {})
            }
            log_metrics(self.client, run, missing, number)
        self.client.log_inputs(run, datasets=_datasets(record))
        for path, folder in record.artifacts:
            self.client.log_artifact(run, str(path), folder)
        tags = {
            "method": record.method,
            "ratio": f"{record.ratio:g}",
            "mlflow.note.content": note(record),
            "mlflow.runColor": colour_of(record),
            **record.words,
            **_output_tags(record),
            MEASURED: json.dumps(compared_numbers(record.metrics)),
            DIGEST: record.digest,  # last: it says that all is there
        }
        for name, value in tags.items():
            self.client.set_tag(run, name, value)

    def promote(
        self, runs: Mapping[str, str], records: Sequence[ModelRecord], ratio: float
    ) -> Decision:
        """Log every model's summary, then choose the champion: see `Registry.promote`.

        Raises:
            UserError: MLflow cannot be used.
        """
        with usable(f"tracking.uri {self.uri}", AGAIN):
            found = summaries(self.root, records)
            for cell, summary in found.items():
                self._summarize(runs[cell], summary)
            self._share_view(found.values())
            return self.registry.promote(runs, records, ratio)

    def _summarize(self, run: str, summary: Summary) -> None:
        """Log what a run does not hold yet of its model's summary."""
        held = self.client.get_run(run).data
        missing = {n: v for n, v in summary.metrics.items() if held.metrics.get(n) != v}
        log_metrics(self.client, run, missing)
        for name, words in summary.tags.items():
            if held.tags.get(name) != words:
                self.client.set_tag(run, name, words)

    def _share_view(self, shown: Iterable[Summary]) -> None:
        """Let the links of flows/server/pages.py show the summaries as columns and as charts."""
        tags = KIND | {f"mlflow.sharedViewState.{VIEW}": json.dumps(shared_view(shown))}
        held = self.client.get_experiment(self.experiment).tags
        for name, value in tags.items():
            if held.get(name) != value:
                self.client.set_experiment_tag(self.experiment, name, value)


@contextmanager
def usable(where: str, remedy: str) -> Iterator[None]:
    """Turn what MLflow raises in the block into a message.

    Raises:
        UserError: MLflow cannot be used.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        said = str(error).splitlines()[0]
        if "database is locked" in said:
            said = "its database is locked by another program"
            remedy = "end that program, or wait, and start again: no stage runs twice"
        raise UserError(f"MLflow cannot be used ({said})", where=where, remedy=remedy) from error


def experiment_number(parameters: TrackingParameters, root: Path) -> str:
    """The number of the experiment, for links.

    Raises:
        UserError: MLflow cannot be used, or there is no such experiment yet.
    """
    from mlflow import MlflowClient

    uri, name = tracking_uri(parameters, root), parameters.experiment
    check_server(uri)
    with usable(f"tracking.uri {uri}", "correct tracking.uri in params.yaml"):
        make_whole(uri)
        follow_clone(uri)
        found = MlflowClient(uri).get_experiment_by_name(name)
    if found is None:
        remedy = "run the pipeline first, e.g. `make demo`"
        raise UserError("there is no such experiment yet", f"MLflow, experiment {name}", remedy)
    return str(found.experiment_id)


def log_experiment(
    parameters: TrackingParameters, root: Path, name: str, means: Mapping[str, float], folder: Path
) -> None:
    """Log the means over seeds of an experiment and its table and plot, as a run of its own.

    Raises:
        UserError: MLflow cannot be used.
    """
    experiment = parameters.model_copy(update={"experiment": f"{parameters.experiment}/{name}"})
    tracking = Tracking(experiment, root)
    client = tracking.client
    run = client.create_run(tracking.experiment, run_name=f"{name}, all seeds").info.run_id
    log_metrics(client, run, means)
    client.log_artifacts(run, str(folder), "table")
    client.set_terminated(run)


def check_server(uri: str) -> None:
    """Tell at once, before any stage has run, that a server is not there.

    Raises:
        UserError: it does not answer. Stores that are no server are opened later.
    """
    if urlparse(uri).scheme not in ("http", "https"):
        return
    try:
        request("GET", f"{uri.rstrip('/')}/health", timeout=10).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL, ImportError) as error:
        raise UserError(
            f"the MLflow server does not answer ({error})",
            where=f"tracking.uri {uri}",
            remedy="start it, or use sqlite:///mlflow.db; nothing has been run yet",
        ) from error


def _datasets(record: ModelRecord) -> list[Any]:
    """The inputs of the model: names and digests of DVC outputs, no data."""
    from mlflow.data.http_dataset_source import HTTPDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    inputs = []
    for item in record.inputs:
        if not item.digest:
            continue
        dataset = MetaDataset(HTTPDatasetSource(item.uri), name=item.stage, digest=item.digest[:36])
        tag = InputTag("mlflow.data.context", item.stage)
        inputs.append(DatasetInput(dataset=dataset._to_mlflow_entity(), tags=[tag]))
    return inputs


def _output_tags(record: ModelRecord) -> dict[str, str]:
    """Digests by path without the model's name, so that models stand side by side."""
    return {
        "dvc." + item.path.replace(f"/{record.cell}", ""): item.digest
        for item in record.outputs
        if item.digest
    }
