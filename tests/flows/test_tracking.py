"""What MLflow holds of each model, and which one is the champion."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo
from dvc.utils.serialize import load_yaml
from mlflow import MlflowClient
from prefect.client.schemas.objects import State

from efficientllava.errors import UserError
from efficientllava.parameters import TrackingParameters
from efficientllava.report.speedup import export_metrics
from efficientllava.report.theme import LIGHT
from efficientllava.versions.connection import tracking_uri
from flows.runner.graph import read_graph
from flows.tracking.record import ModelRecord, _read_output, read_record
from flows.tracking.tracking import Tracking, check_server


@pytest.fixture(scope="module")
def client(first_run: tuple[Path, State]) -> MlflowClient:
    return MlflowClient(f"sqlite:///{first_run[0]}/mlflow.db")


def test_a_run_carries_everything_that_dvc_yaml_declares(
    client: MlflowClient, first_run: tuple[Path, State]
) -> None:
    [version] = client.search_model_versions("name = 'toy' and tags.method = 'magnitude'")
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "magnitude-0.5"
    assert run.data.params == {
        "method": "magnitude",
        "ratio": "0.5",
        "model.demo.seed": "0",
        "search.rounds": "3",
        "search.seed": "0",
    }
    metrics = run.data.metrics
    assert metrics["summary/zeros_percent"] == 50.0
    assert metrics["summary/accuracy_percent"] == 80.0
    # all else is in artifacts, so that the summary is what a comparison shows first
    assert {name.partition("/")[0] for name in metrics} == {"summary", "trajectory"}
    assert "evaluate/scores.json" in {
        file.path for file in client.list_artifacts(version.run_id, "evaluate")
    }
    assert run.data.tags["mlflow.runColor"] == LIGHT.colour("magnitude")
    history = client.get_metric_history(version.run_id, "trajectory/best_risk")
    assert [(entry.step, entry.value) for entry in history] == [(1, 1), (2, 1 / 2), (3, 1 / 3)]
    [model] = run.inputs.dataset_inputs
    lock = (first_run[0] / "dvc.lock").read_text()
    assert model.dataset.name == "model"
    assert f"md5: {model.dataset.digest}\n" in lock
    flow_run = str(first_run[1].state_details.flow_run_id)
    assert run.data.tags["prefect.flow_run_id"] == flow_run
    assert run.data.tags["prefect.flow_run_url"].endswith(flow_run)
    assert {file.path for file in client.list_artifacts(version.run_id, "search")} == {
        "search/policy.json",
        "search/history.jsonl",
    }


def test_the_experiment_s_page_shows_what_decides_first(client: MlflowClient) -> None:
    """Its charts: metrics and then parameters side by side, then a plot of each summary."""
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    view = json.loads(experiment.tags["mlflow.sharedViewState.summary"])
    first, *plots = view["compareRunCharts"]
    assert (
        first["compareGroups"] == ["Model metrics", "Parameters"] and first["showDifferencesOnly"]
    )
    names = [plot["metricKey"] for plot in plots]
    assert names[:2] == ["summary/accuracy_percent", "summary/accuracy_se_percent"]
    assert {f"metrics.`{name}`" for name in names} <= set(view["selectedColumns"])
    sections = [section["uuid"] for section in view["compareRunSections"]]
    assert [chart["metricSectionId"] for chart in (first, plots[0])] == sections


def test_a_version_points_at_the_weights(
    client: MlflowClient, first_run: tuple[Path, State]
) -> None:
    [version] = client.search_model_versions("name = 'toy' and tags.method = 'sparsegpt'")
    # the output of stage prune, and not of export, which looks like a checkpoint as well
    digest = locked_digest(first_run[0], "prune@sparsegpt-0.5", "artifacts/pruned/sparsegpt-0.5")
    assert version.source == f"dvc://artifacts/pruned/sparsegpt-0.5?md5={digest}"
    assert f"DVC md5 {digest}" in version.description
    assert version.tags["accuracy"] == "0.8500"
    assert version.tags["sparsity"] == "0.5000"
    [dense] = client.search_model_versions("name = 'toy' and tags.method = 'dense'")
    digest = locked_digest(first_run[0], "model", "artifacts/model")
    assert dense.source == f"dvc://artifacts/model?md5={digest}"


def locked_digest(root: Path, stage: str, path: str) -> str:
    outs = load_yaml(str(root / "dvc.lock"))["stages"][stage]["outs"]
    [digest] = [out["md5"] for out in outs if out["path"] == path]
    return digest


def test_times_do_not_make_another_model(finished: Path) -> None:
    nodes = read_graph(finished)
    tracking = Tracking(TrackingParameters(experiment="toy", registered_model="toy"), finished)
    before = read_record(finished, nodes, "magnitude-0.5")
    run, new = tracking.log(before)
    assert not new
    force = [sys.executable, "-m", "dvc", "repro", "--single-item", "--force"]
    subprocess.run([*force, "export@magnitude-0.5"], check=True, stdout=subprocess.DEVNULL)
    after = read_record(finished, nodes, "magnitude-0.5")
    assert after.metric("prefill_ms") != before.metric("prefill_ms")
    assert after.digest == before.digest
    # the same run and version, with the times of now
    assert tracking.log(after) == (run, True)
    assert len(tracking.client.search_model_versions(f"run_id = '{run}'")) == 1
    timed = "artifacts/export_metrics/magnitude-0.5.json"
    [times] = [item.digest for item in after.outputs if item.path == timed]
    assert tracking.client.get_run(run).data.tags["dvc.artifacts/export_metrics.json"] == times
    assert tracking.log(after) == (run, False)


def test_a_record_knows_which_questions_were_asked(toy: Path) -> None:
    text = (toy / "dvc.yaml").read_text()
    text = text.replace(
        "stages:\n",
        "stages:\n  questions:\n    cmd: python stage.py questions\n"
        "    deps: [problems.json]\n    outs: [artifacts/questions]\n",
    ).replace(
        '    deps: ["artifacts/pruned/${item.method}-${item.ratio}"]\n    metrics',
        '    deps: ["artifacts/pruned/${item.method}-${item.ratio}", artifacts/questions]\n'
        "    metrics",
    )
    (toy / "dvc.yaml").write_text(text)
    found = []
    for problems in ("{}", '{"1": "another question"}', "{}"):
        (toy / "problems.json").write_text(problems)
        with Repo(str(toy)) as repo:
            repo.reproduce("evaluate@magnitude-0.5")
            repo.reproduce("evaluate@sparsegpt-0.5")
        nodes = read_graph(toy, ("evaluate",))
        records = [read_record(toy, nodes, f"{name}-0.5") for name in ("magnitude", "sparsegpt")]
        assert records[0].questions == records[1].questions  # not: which model was asked
        found.append(records[0].questions)
    assert found[0] == found[2] != found[1]


def test_a_deleted_experiment_is_told_at_the_start(finished: Path) -> None:
    parameters = TrackingParameters(experiment="deleted", registered_model="toy")
    tracking = Tracking(parameters, finished)
    tracking.client.delete_experiment(tracking.experiment)
    with pytest.raises(UserError, match=f"restore --experiment-id {tracking.experiment}"):
        Tracking(parameters, finished)
    tracking.client.restore_experiment(tracking.experiment)
    assert Tracking(parameters, finished).experiment == tracking.experiment


def test_digest_depends_on_what_was_made_not_on_when(finished: Path) -> None:
    root = finished
    nodes = read_graph(root)
    record = read_record(root, nodes, "magnitude-0.5")
    assert record.digest == read_record(root, nodes, "magnitude-0.5").digest
    assert record.digest != read_record(root, nodes, "sparsegpt-0.5").digest
    before = record.digest
    record.parameters["search.seed"] = 5
    assert record.digest != before


def test_speedups_are_logged_as_intervals_never_as_factors(tmp_path: Path) -> None:
    timing = {
        "available": True,
        "pruned": {"prefill_ms": 10.0},
        "prefill_speedup": 3.35,
        "prefill_speedup_interval": {"low": 0.27, "high": 6.23},
        "prefill_speedup_over_best_dense": 3.35,
        "prefill_speedup_over_best_dense_interval": None,
    }
    missing = {"available": False, "reason": "not installed"}
    runtimes = {"runtimes": {"onnxruntime": timing, "deepsparse": missing}}
    (tmp_path / "export.json").write_text(json.dumps(runtimes))
    record = ModelRecord("a-0.5", "a", 0.5)
    _read_output(record, "export", tmp_path)
    name = "export/runtimes.onnxruntime"
    assert record.metrics == {
        f"{name}.available": 1.0,
        f"{name}.pruned.prefill_ms": 10.0,
        f"{name}.prefill_speedup_interval.low": 0.27,
        f"{name}.prefill_speedup_interval.high": 6.23,
        "export/runtimes.deepsparse.available": 0.0,
    }


def test_speedups_in_words_become_tags(tmp_path: Path) -> None:
    """The words of DVC's metrics, which are those of the tables."""
    ends = {"low": 1.2, "high": 1.31}
    row = {"available": True, "dense": {}, "pruned": {}}
    for phase in ("prefill", "decode"):
        row |= {f"{phase}_speedup": 1.25, f"{phase}_speedup_interval": ends}
        row["dense"][f"{phase}_ms"], row["pruned"][f"{phase}_ms"] = 1.25, 1.0
    row["decode_speedup_interval"] = {"low": 0.9, "high": 1.6}
    path = tmp_path / "a-0.5.json"
    path.write_text(json.dumps(export_metrics({"runtimes": {"sparse": row}})))
    record = ModelRecord("a-0.5", "a", 0.5)
    _read_output(record, "export", path)
    name = "export/runtimes.sparse"
    assert record.words == {
        f"{name}.prefill_speedup_told": "faster ×1.25 (1.20–1.31)",
        f"{name}.decode_speedup_told": "no difference measured (0.90–1.60, wide)",
    }
    assert record.metrics[f"{name}.prefill_ms"] == 1.0


def test_rounds_are_told_again_from_the_history(finished: Path) -> None:
    record = read_record(finished, read_graph(finished), "magnitude-0.5")
    assert {n: row["best_risk"] for n, row in record.rounds.items()} == {1: 1, 2: 1 / 2, 3: 1 / 3}
    assert record.rounds[1]["evaluated"] == 2


def test_unusable_servers_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not answer"):
        check_server("http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"tracking\.uri"):
        Tracking(TrackingParameters(uri="file:///nowhere"), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be used"):
        Tracking(TrackingParameters(uri="sqlite:///file/mlflow.db"), tmp_path)


def test_relative_database_lies_in_the_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(TrackingParameters(), tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking_uri(TrackingParameters(uri="http://a:1"), tmp_path) == "http://a:1"
