"""MLflow runs of models in the making: interrupted, taken up, as long as the model's own time."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from prefect.client.schemas.objects import State

from efficientllava.errors import UserError
from efficientllava.parameters import TrackingParameters
from flows.pipeline import pipeline
from flows.runner.graph import read_graph
from flows.tracking.live import LiveRuns
from flows.tracking.record import ModelRecord, read_record
from flows.tracking.tracking import Tracking
from tasks.runtime.cost import StageCost, read_cost

CELL = "magnitude-0.5"
PARAMETERS = TrackingParameters(experiment="again", registered_model="again")


def runs_of(client: MlflowClient, name: str) -> list[Run]:
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def histories(client: MlflowClient, run: Run) -> dict[str, list[tuple[int, float]]]:
    """Every metric of a run: (step, value) of each entry."""
    return {
        name: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, name))
        for name in run.data.metrics
    }


@pytest.fixture
def record(finished: Path) -> ModelRecord:
    return read_record(finished, read_graph(finished), CELL)


@pytest.mark.parametrize("how", ["KILLED", "FAILED", "kill -9"])
def test_the_restart_takes_up_an_unfinished_run(
    finished: Path, record: ModelRecord, how: str
) -> None:
    before = Tracking(PARAMETERS, finished)
    number = before.live.begin(CELL)
    before.live.log_round(CELL, 1, record.rounds[1])
    if how == "KILLED":
        before.live.interrupt()
    elif how == "FAILED":
        before.live.end(CELL, "search@magnitude-0.5 failed", "FAILED")
    restart = Tracking(PARAMETERS, finished, {"prefect.flow_run_id": "the restart"})
    assert restart.close_left_open() == (1 if how == "kill -9" else 0)  # which ends no run
    [run] = runs_of(restart.client, "again")
    assert run.info.status == ("FAILED" if how == "FAILED" else "KILLED")
    assert ("pipeline.failure" in run.data.tags) == (how != "kill -9")
    assert restart.live.begin(CELL) == number
    assert restart.client.get_run(number).info.status == "RUNNING"
    for step in (1, 2):  # a search that resumes reports finished rounds again
        restart.live.log_round(CELL, step, record.rounds[step])
    assert restart.log(record) == (number, True)
    [run] = runs_of(restart.client, "again")
    assert run.info.status == "FINISHED"
    assert run.data.tags["prefect.flow_run_id"] == "the restart"
    assert "pipeline.failure" not in run.data.tags
    found = histories(restart.client, run)
    assert found["trajectory/best_risk"] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


def test_an_attempt_at_a_model_that_is_logged_leaves_nothing(
    finished: Path, record: ModelRecord
) -> None:
    tracking = Tracking(PARAMETERS, finished)
    number, _ = tracking.log(record)
    for status in ("FAILED", "KILLED"):
        tracking.live.begin(CELL)
        tracking.live.end(CELL, "stopped", status)
    assert len(runs_of(tracking.client, "again")) == 2  # the second took up the first
    assert tracking.log(record) == (number, False)
    assert [run.info.run_id for run in runs_of(tracking.client, "again")] == [number]


def test_a_run_of_other_parameters_is_not_taken_up(finished: Path, record: ModelRecord) -> None:
    before = Tracking(PARAMETERS, finished)
    number = before.live.begin(CELL)
    before.live.log_round(CELL, 1, record.rounds[1] | {"best_risk": 0.875})  # of another seed
    before.live.interrupt()
    after = Tracking(PARAMETERS, finished)
    other, _ = after.log(record)
    [run] = runs_of(after.client, "again")  # the half one is deleted
    assert other == run.info.run_id != number
    assert histories(after.client, run)["trajectory/best_risk"][0] == (1, 1.0)


def test_a_run_of_another_workspace_is_left_alone(finished: Path) -> None:
    here = Tracking(PARAMETERS, finished)
    elsewhere = LiveRuns(here.client, here.experiment, '/else/it\'s "odd"', {})
    number = elsewhere.begin(CELL)
    assert here.close_left_open() == 0
    assert here.live.begin(CELL) != number
    assert elsewhere.close_left_open() == 1
    assert here.client.get_run(number).info.status == "KILLED"


def test_rounds_are_the_same_live_and_from_files(
    first_run: tuple[Path, State], finished: Path, prefect: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All metrics of all models: names, steps and values, but for what the summary times."""
    live = MlflowClient(f"sqlite:///{first_run[0]}/mlflow.db")
    # absolute: MLflow keeps one connection for an address, whatever the current folder
    address = f"sqlite:///{finished}/relogged.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert pipeline(return_state=True).is_completed()
    cached = MlflowClient(address)
    expected = {run.info.run_name: histories(live, run) for run in runs_of(live, "toy")}
    found = {run.info.run_name: histories(cached, run) for run in runs_of(cached, "toy")}
    assert found == expected
    assert {step for step, _ in found[CELL]["trajectory/evaluated"]} == {1, 2, 3}


def test_every_model_has_the_same_summary(first_run: tuple[Path, State]) -> None:
    client = MlflowClient(f"sqlite:///{first_run[0]}/mlflow.db")
    sets = {
        run.info.run_name: {name for name in run.data.metrics if name.startswith("summary/")}
        for run in runs_of(client, "toy")
    }
    assert sets["dense"] >= {"summary/accuracy_percent", "summary/cost_cpu_seconds"}
    assert len(set(map(frozenset, sets.values()))) == 1, sets


def test_a_run_lasts_as_long_as_its_own_stages(first_run: tuple[Path, State]) -> None:
    client = MlflowClient(f"sqlite:///{first_run[0]}/mlflow.db")
    [run] = [run for run in runs_of(client, "toy") if run.info.run_name == CELL]
    costs = [read_cost(f"{s}@{CELL}", first_run[0]) for s in ("search", "prune", "evaluate")]
    costs.append(read_cost(f"export@{CELL}", first_run[0]))
    seconds = sum(cost.wall_seconds for cost in costs if cost is not None)
    assert None not in costs
    assert abs(run.info.end_time - run.info.start_time - 1000 * seconds) <= 2
    assert run.data.metrics["summary/cost_wall_seconds"] == pytest.approx(seconds)


def test_a_run_from_files_begins_when_its_stages_did(finished: Path, record: ModelRecord) -> None:
    record.costs = [StageCost(1000.0, 2.0, 1.0, True), StageCost(900.0, 3.0, 1.0, True)]
    tracking = Tracking(PARAMETERS, finished)
    run = tracking.client.get_run(tracking.log(record)[0])
    assert (run.info.start_time, run.info.end_time) == (900_000, 905_000)


@pytest.mark.parametrize("name", ["it's odd", 'say "odd"', "both ' and \"", "100 % ünï #?"])
def test_odd_names_and_paths(tmp_path: Path, name: str, record: ModelRecord) -> None:
    root = tmp_path / 'it\'s "odd" %41 #x'
    root.mkdir()
    parameters = TrackingParameters(experiment=name, registered_model=name)
    tracking = Tracking(parameters, root)
    record.artifacts = [(Path("params.yaml"), "evaluate")]
    run, _ = tracking.log(record)
    assert tracking.promote({CELL: run}, [record], 0.5).version == "1"
    assert tracking.known(record) == run
    assert [f.path for f in tracking.client.list_artifacts(run, "evaluate")] == [
        "evaluate/params.yaml"
    ]


@pytest.mark.parametrize("name", ["a/b", "a:b"])
def test_names_that_mlflow_refuses_are_told(finished: Path, name: str) -> None:
    with pytest.raises(UserError, match="tracking.registered_model") as told:
        Tracking(TrackingParameters(registered_model=name), finished)
    assert "Names cannot contain" in str(told.value)


@pytest.mark.slow  # MLflow waits 20 s for the lock
def test_a_locked_database_is_told(
    finished: Path, record: ModelRecord, capfd: pytest.CaptureFixture[str]
) -> None:
    tracking = Tracking(PARAMETERS, finished)
    run, _ = tracking.log(record)
    holder = sqlite3.connect(finished / "mlflow.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        for call in (lambda: tracking.promote({CELL: run}, [record], 0.5), _opened(finished)):
            with pytest.raises(UserError, match="locked by another program"):
                call()
    finally:
        holder.execute("ROLLBACK")
        holder.close()
    assert "Traceback" not in capfd.readouterr().err
    assert tracking.promote({CELL: run}, [record], 0.5).version


def _opened(root: Path) -> Any:
    return lambda: Tracking(PARAMETERS, root)
