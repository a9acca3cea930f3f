"""MLflow: one run per model, one version per run, and the champion.

A run is keyed by the digest of its content, so that logging the same model again does
nothing, and logging it to an empty server writes it anew.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import httpx

from efficientllava.errors import UserError, without_users
from efficientllava.parameters import TrackingParameters
from flows.runner.graph import flatten
from flows.runner.loopback import request
from flows.tracking.moved import follow_clone
from flows.tracking.record import ModelRecord
from flows.tracking.registry import Registry, note
from flows.tracking.servers import check_artifacts, check_database
from flows.tracking.store import make_whole

DIGEST, CELL, WORKSPACE = "pipeline.digest", "pipeline.cell", "pipeline.workspace"
ROUND_PREFIX = "search_rounds"
BATCH = 100  # parameters that MLflow takes at once


@dataclass
class Tracking:
    """The experiment and registered model of one pipeline run.

    Args:
        parameters: the section `tracking` of params.yaml.
        root: the workspace.
        tags: put on every run, e.g. the link to the Prefect run.

    Attributes:
        unfinished: where a half-made database was put, in whose place a new one is; None usually.
    """

    parameters: TrackingParameters
    root: Path
    tags: dict[str, str] = field(default_factory=dict)
    _open: dict[str, str] = field(default_factory=dict)  # cell -> id of its unfinished run

    def __post_init__(self) -> None:
        """Connect, and create the experiment and the registered model where they are missing.

        Raises:
            UserError: the server does not answer, or the store cannot be opened.
        """
        self.uri = uri = tracking_uri(self.parameters, self.root)
        check_server(uri)
        # MLflow's own default is some minutes of silent retries
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            check_database(uri)
            self.unfinished = make_whole(uri)
            follow_clone(uri)
            self.client = MlflowClient(uri, registry_uri=uri)
            self.experiment = self._experiment(self.parameters.experiment)
            self.registry = Registry(self.client, self.parameters.registered_model)
        except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
            raise UserError(
                f"MLflow cannot be used ({str(error).splitlines()[0]})",
                where=f"tracking.uri {uri}",
                remedy="correct tracking.uri in params.yaml; nothing has been run yet",
            ) from error
        check_artifacts(self.client.get_experiment(self.experiment).artifact_location, uri)

    def _experiment(self, name: str) -> str:
        experiment = self.client.get_experiment_by_name(name)
        if experiment is not None:
            number = str(experiment.experiment_id)
            if experiment.lifecycle_stage != "active":
                raise UserError(
                    "the experiment was deleted, and MLflow keeps its name",
                    where=f"MLflow, experiment {name} ({number})",
                    remedy=f"`mlflow experiments restore --experiment-id {number}` with "
                    f"MLFLOW_TRACKING_URI={self.uri}, or give tracking.experiment another name",
                )
            return number
        place = self.parameters.artifacts or _artifacts(self.uri)
        return str(self.client.create_experiment(name, artifact_location=place))

    def close_left_open(self) -> int:
        """End runs as KILLED that an earlier, killed pipeline of this workspace left running."""
        left = self._runs(f"attributes.status = 'RUNNING' and tags.`{WORKSPACE}` = '{self.root}'")
        for run in left:
            self.client.set_terminated(run.info.run_id, status="KILLED")
        return len(left)

    def _runs(self, query: str) -> list[Any]:
        return list(self.client.search_runs([self.experiment], query, max_results=50))

    def begin(self, cell: str) -> None:
        """Open the run of a model that is being made, for live metrics."""
        if cell not in self._open:
            run = self.client.create_run(self.experiment, run_name=cell, tags=self._tags(cell))
            self._open[cell] = run.info.run_id

    def _tags(self, cell: str) -> dict[str, str]:
        return {CELL: cell, WORKSPACE: str(self.root), **self.tags}

    def log_round(self, cell: str, number: int, values: Mapping[str, Any]) -> None:
        """Log the values of a finished round of the model's search."""
        if run := self._open.get(cell):
            self._log_metrics(run, _round_metrics(values), step=number)

    def _log_metrics(self, run: str, metrics: Mapping[str, float], step: int = 0) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        entries = [Metric(name, value, now, step) for name, value in metrics.items()]
        if entries:
            self.client.log_batch(run, metrics=entries)

    def fail(self, cell: str, cause: str) -> None:
        """End the model's open run as FAILED, naming the cause."""
        if run := self._open.pop(cell, None):
            self.client.set_tag(run, "pipeline.failure", cause)
            self.client.set_terminated(run, status="FAILED")

    def fail_all(self, cause: str) -> None:
        """End every open run as FAILED: the pipeline stops here."""
        for cell in list(self._open):
            self.fail(cell, cause)

    def known(self, record: ModelRecord) -> str | None:
        """The id of the run in which exactly this model is logged and registered; None if none."""
        for run in self._finished(record):
            whole = _output_tags(record).items() <= run.data.tags.items()
            if whole and self.registry.holds(run.info.run_id):
                return str(run.info.run_id)
        return None

    def _finished(self, record: ModelRecord) -> list[Any]:
        return self._runs(f"attributes.status = 'FINISHED' and tags.`{DIGEST}` = '{record.digest}'")

    def log(self, record: ModelRecord) -> tuple[str, bool]:
        """Log a finished model and register it, unless exactly this was logged before.

        Returns:
            The id of its run, and whether anything in it is new.
        """
        known = self._finished(record)
        if known:
            if repeated := self._open.pop(record.cell, None):
                self.client.delete_run(repeated)  # ran again, and gave exactly the same
            run = known[0].info.run_id
            new = not _output_tags(record).items() <= known[0].data.tags.items()
            if new:
                self._write(run, record)  # the same model, timed anew
        else:
            self.begin(record.cell)
            run = self._open[record.cell]
            self._write(run, record)
            self.client.set_terminated(run, status="FINISHED")
            del self._open[record.cell]
            new = True
        self.registry.register(run, record)
        return run, new

    def _write(self, run: str, record: ModelRecord) -> None:
        from mlflow.entities import Param

        parameters = {"method": record.method, "ratio": record.ratio, **record.parameters}
        entries = [Param(name, without_users(str(value))) for name, value in parameters.items()]
        for start in range(0, len(entries), BATCH):
            self.client.log_batch(run, params=entries[start : start + BATCH])
        self._log_metrics(run, record.metrics)
        for number, values in record.rounds.items():
            missing = {
                name: value
                for name, value in _round_metrics(values).items()
                if number not in self._steps(run, name)
            }
            self._log_metrics(run, missing, step=number)
        self.client.log_inputs(run, datasets=_datasets(record))
        for path, folder in record.artifacts:
            self.client.log_artifact(run, str(path), folder)
        tags = {
            "method": record.method,
            "ratio": f"{record.ratio:g}",
            "mlflow.note.content": note(record),
            **record.words,
            **_output_tags(record),
            DIGEST: record.digest,  # last: it says that all is there
        }
        for name, value in tags.items():
            self.client.set_tag(run, name, value)

    def promote(self, runs: Mapping[str, str], records: Iterable[ModelRecord], ratio: float) -> str:
        """Choose the champion among a pipeline's models: see `Registry.promote`."""
        return self.registry.promote(runs, records, ratio)

    def _steps(self, run: str, name: str) -> set[int]:
        return {entry.step for entry in self.client.get_metric_history(run, name)}


def tracking_uri(parameters: TrackingParameters, root: Path) -> str:
    """Where MLflow is: its own environment variable goes before params.yaml.

    A relative database file lies in the workspace, wherever this process is or goes.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or parameters.uri
    scheme, slashes, path = uri.partition(":///")
    if scheme.startswith("sqlite") and slashes and not path.startswith("/"):
        return f"{scheme}:///{root.resolve() / path}"
    return uri


def _artifacts(uri: str) -> str | None:
    """Beside a local database, in mlruns/; a server decides by itself.

    Raises:
        UserError: a database that others use too would be told of a folder of this machine.
    """
    scheme, _, database = uri.partition(":///")
    if not scheme.startswith(("sqlite", "http")):
        raise UserError(
            "artifacts of a database on another machine need a place that all machines reach",
            where="params.yaml, tracking.artifacts",
            remedy="write one, e.g. s3://bucket/mlflow, or let an MLflow server be tracking.uri",
        )
    return (Path(database).parent / "mlruns").as_uri() if scheme.startswith("sqlite") else None


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
    tracking._log_metrics(run, means)
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


def _round_metrics(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        f"{ROUND_PREFIX}/{name}": float(value)
        for name, value in flatten(values).items()
        if isinstance(value, int | float) and name != "round"
    }


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
