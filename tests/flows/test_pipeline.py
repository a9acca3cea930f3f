"""The flow over quick stages, with real DVC, Prefect and MLflow."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from prefect import flow, get_client, task
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import State, StateType
from prefect.states import Completed, Running

from flows.pipeline import pipeline
from flows.runner.stages import PipelineFailure, StageFailure
from flows.server.runs import workspace_tag
from tests.flows.conftest import change, task_runs

STAGES = ["model", "evaluate_dense", "report"] + [
    f"{stage}@{cell}"
    for stage in ("search", "prune", "evaluate", "export")
    for cell in ("magnitude-0.5", "sparsegpt-0.5")
]
CELLS = ["dense", "magnitude-0.5", "sparsegpt-0.5"]


def run() -> State:
    return pipeline(return_state=True)


def settled(state: State, count: int) -> dict:
    """Task runs reach the server's records as events: wait until all are there, and ended."""
    for _ in range(100):
        runs = task_runs(state)
        if len(runs) >= count and all(r.state and r.state.is_final() for r in runs.values()):
            break
        time.sleep(0.2)
    return runs


def test_first_run_shows_stages_rounds_and_models(first_run: tuple[Path, State]) -> None:
    state = first_run[1]
    assert state.is_completed()
    rounds = [f"search@{cell} round {n}" for cell in CELLS[1:] for n in (1, 2, 3)]
    logged = [f"mlflow@{cell}" for cell in CELLS]
    runs = settled(state, len([*STAGES, *rounds, *logged, "promote"]))
    assert set(runs) == {*STAGES, *rounds, *logged, "promote"}
    assert {r.state_name for r in runs.values()} == {"Completed"}
    assert runs["model"].state.message == "it has not run yet"
    # a round lies within its stage, and a stage hangs on those it reads
    parents = runs["search@magnitude-0.5 round 2"].task_inputs["__parents__"]
    assert [parent.id for parent in parents] == [runs["search@magnitude-0.5"].id]
    waited = {item.id for item in runs["prune@magnitude-0.5"].task_inputs["wait_for"]}
    assert waited == {runs["search@magnitude-0.5"].id, runs["model"].id}

    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id])
            )
        )
    by_key = {artifact.key: artifact for artifact in artifacts}
    table = json.loads(by_key["search-magnitude-0-5-steps"].data)
    assert [row["round"] for row in table] == [1, 2, 3]
    assert [row["best_risk"] for row in table] == [1, 1 / 2, 1 / 3]
    assert by_key["search-magnitude-0-5-progress"].data == 100.0


def test_second_run_does_nothing(finished: Path, prefect: None) -> None:
    client = MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")
    experiment = client.get_experiment_by_name("toy").experiment_id
    before = {r.info.run_id for r in client.search_runs([experiment])}
    start = time.monotonic()
    state = run()
    assert time.monotonic() - start < 10
    runs = settled(state, len(STAGES))
    assert {runs[name].state_name for name in STAGES} == {"Cached"}
    assert {runs[f"mlflow@{cell}"].state_name for cell in CELLS} == {"Cached"}
    assert {r.info.run_id for r in client.search_runs([experiment])} == before
    assert len(client.search_model_versions("name = 'toy'")) == len(CELLS)


def test_a_run_logs_what_a_lost_server_held(
    finished: Path, prefect: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///another.db")
    state = run()
    runs = settled(state, len(STAGES))
    assert {runs[name].state_name for name in STAGES} == {"Cached"}
    client = MlflowClient("sqlite:///another.db")
    [search] = [
        v for v in client.search_model_versions("name='toy'") if v.tags["method"] != "dense"
    ][:1]
    history = client.get_metric_history(search.run_id, "trajectory/best_risk")
    assert [(m.step, m.value) for m in history] == [(1, 1), (2, 1 / 2), (3, 1 / 3)]


def test_only_what_changed_runs_and_says_why(finished: Path, prefect: None) -> None:
    change(finished, "rounds: 3, seed: 0", "rounds: 3, seed: 1")
    runs = settled(run(), len(STAGES))
    assert runs["model"].state_name == "Cached"
    assert runs["search@sparsegpt-0.5"].state_name == "Completed"
    assert runs["search@sparsegpt-0.5"].state.message == "search.seed was 0, is 1"
    # the policy came out the same: nothing after it runs
    assert runs["prune@sparsegpt-0.5"].state_name == "Cached"
    change(finished, "rounds: 3, seed: 1", "rounds: 3, seed: 0")
    assert settled(run(), len(STAGES))["search@sparsegpt-0.5"].state_name == "Restored"


def test_failure_stops_what_depends_on_it(
    finished: Path, prefect: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(finished, "seed: 0}\ntracking", "seed: 7}\ntracking")
    monkeypatch.setenv("TOY_FAILS", "search magnitude-0.5 2")
    state = run()
    assert state.type == StateType.FAILED
    failure = state.result(raise_on_failure=False)
    assert isinstance(failure, PipelineFailure)
    assert failure.status == 2
    assert [item.stage for item in failure.failures] == ["search@magnitude-0.5"]
    assert failure.failures[0].cause == (
        "error: params.yaml: search.rounds cannot work\n  -> mend it"
    )
    runs = settled(state, len(STAGES) - 1)
    assert "search.rounds cannot work" in runs["search@magnitude-0.5"].state.message
    for name in ("prune@magnitude-0.5", "evaluate@magnitude-0.5", "export@magnitude-0.5", "report"):
        assert runs[name].state_name == "NotRun"
        assert "search@magnitude-0.5" in runs[name].state.message
    assert runs["search@sparsegpt-0.5"].state_name == "Completed"
    assert runs["mlflow@sparsegpt-0.5"].state_name == "Completed"
    # DVC removes outputs before it runs a stage: the finished ones are there again
    assert (finished / "artifacts/search/magnitude-0.5/policy.json").is_file()
    client = MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")
    [failed] = client.search_runs(
        [client.get_experiment_by_name("toy").experiment_id], "attributes.status = 'FAILED'"
    )
    assert failed.info.run_name == "magnitude-0.5"
    assert failed.data.tags["pipeline.failure"] == "search@magnitude-0.5 failed"


def test_a_killed_run_is_marked_crashed(finished: Path, prefect: None) -> None:
    @flow
    def killed() -> None: ...

    @task
    def lost() -> None: ...

    with get_client(sync_client=True) as client:
        left = client.create_flow_run(killed, tags=[workspace_tag(finished)], state=Running())
        ended = client.create_flow_run(killed, tags=[workspace_tag(finished)], state=Completed())
        tasks = [
            client.create_task_run(lost, run.id, f"{number}", state=Running())
            for number, run in enumerate((left, ended))
        ]
        elsewhere = client.create_flow_run(killed, tags=["workspace other"], state=Running())
        assert run().is_completed()
        assert client.read_flow_run(left.id).state.type == StateType.CRASHED
        assert client.read_flow_run(ended.id).state.type == StateType.COMPLETED
        for each in tasks:
            assert client.read_task_run(each.id).state.type == StateType.CRASHED
        assert client.read_flow_run(elsewhere.id).state.type == StateType.RUNNING
        client.delete_flow_run(elsewhere.id)


def test_a_defect_is_told_from_what_the_user_can_mend() -> None:
    mendable, defect = StageFailure("a", 2, "x"), StageFailure("b", 1, "x")
    assert PipelineFailure([mendable], []).status == 2
    assert PipelineFailure([mendable, defect], []).status == 1


def test_a_run_has_a_name_and_tags(first_run: tuple[Path, State], prefect: None) -> None:
    root, state = first_run
    with get_client(sync_client=True) as client:
        made = client.read_flow_run(state.state_details.flow_run_id)
    assert made.name == "magnitude+sparsegpt 0.5 seed 0"
    assert {"method magnitude", "ratio 0.5", "seed 0", workspace_tag(root)} <= set(made.tags)


def test_a_form_runs_in_a_workspace_of_its_own(
    toy: Path, prefect: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (toy / "efficientllava").mkdir()
    (toy / "tasks").mkdir()
    (toy / "stage.py").rename(toy / "tasks" / "stage.py")
    (toy / ".dvcignore").touch()
    (toy / "dvc.yaml").write_text(
        (toy / "dvc.yaml").read_text().replace("stage.py", "tasks/stage.py")
    )
    before = (toy / "params.yaml").read_bytes()
    state = pipeline(
        methods=["wanda"], overrides=["search.rounds=4"], return_state=True, until=["prune"]
    )
    assert state.is_completed(), state
    assert set(settled(state, 3)) >= {"model", "search@wanda-0.5", "prune@wanda-0.5"}
    [folder] = (toy / ".work" / "runs").iterdir()
    assert (folder / "artifacts" / "pruned" / "wanda-0.5").is_dir()
    assert not (toy / "artifacts").exists() and (toy / "params.yaml").read_bytes() == before
    [version] = MlflowClient(f"sqlite:///{toy}/mlflow.db").search_model_versions("name = 'toy'")
    run = MlflowClient(f"sqlite:///{toy}/mlflow.db").get_run(version.run_id)
    assert run.data.params["search.rounds"] == "4"
    assert json.loads(run.data.tags["pipeline.form"])["overrides"] == ["search.rounds=4"]
    again = pipeline(
        methods=["wanda"], overrides=["search.rounds=4"], return_state=True, until=["prune"]
    )
    assert settled(again, 3)["prune@wanda-0.5"].state_name == "Cached"
    wrong = pipeline(overrides=["search.rouns=4"], return_state=True)
    assert wrong.is_failed()
    assert "search.rouns" in wrong.message and "did you mean rounds?" in wrong.message


def test_broken_graph_is_told(toy: Path, prefect: None) -> None:
    (toy / "dvc.yaml").write_text("stages:\n  model:\n    commands: x\n")
    failure = run().result(raise_on_failure=False)
    assert isinstance(failure, PipelineFailure) and failure.status == 2
    assert "dvc.yaml" in failure.failures[0].cause
