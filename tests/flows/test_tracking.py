"""What MLflow holds of each model, and which one is the champion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from prefect.client.schemas.objects import State

from efficientllava.errors import UserError
from efficientllava.parameters import TrackingParameters
from flows.runner.graph import read_graph
from flows.tracking.champion import champion
from flows.tracking.record import ModelRecord, _read_output, read_record
from flows.tracking.tracking import Tracking, check_server, tracking_uri


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
        "model.embedded.seed": "0",
        "search.rounds": "3",
        "search.seed": "0",
    }
    metrics = run.data.metrics
    assert metrics["prune/achieved_sparsity"] == 0.5
    assert metrics["evaluate/accuracy"] == 0.8
    assert metrics["evaluate/breakdowns.G1-6.standard_error"] == 0.01
    history = client.get_metric_history(version.run_id, "search_rounds/best_risk")
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


def test_a_version_points_at_the_weights(
    client: MlflowClient, first_run: tuple[Path, State]
) -> None:
    [version] = client.search_model_versions("name = 'toy' and tags.method = 'sparsegpt'")
    pointer, _, digest = version.source.partition("?md5=")
    assert pointer == "dvc://artifacts/pruned/sparsegpt-0.5"
    assert f"md5: {digest}\n" in (first_run[0] / "dvc.lock").read_text()
    assert version.tags["accuracy"] == "0.8500"
    assert version.tags["sparsity"] == "0.5000"
    [dense] = client.search_model_versions("name = 'toy' and tags.method = 'dense'")
    assert dense.source.startswith("dvc://artifacts/model?md5=")


def test_champion_is_the_most_accurate_pruned_model(client: MlflowClient) -> None:
    version = client.get_model_version_by_alias("toy", "champion")
    assert version.tags["method"] == "sparsegpt"  # 0.85; dense has 0.90, magnitude 0.80
    assert "most accurate" in version.tags["champion.rule"]


def model(method: str, ratio: float, accuracy: float, loss: float) -> ModelRecord:
    metrics = {"evaluate/accuracy": accuracy, "evaluate/answer_nll": loss}
    return ModelRecord(f"{method}-{ratio:g}", method, ratio, metrics=metrics)


def test_champion_rule() -> None:
    models = [
        model("dense", 0.5, 1.0, 0.1),
        model("a", 0.5, 0.8, 0.5),
        model("b", 0.5, 0.8, 0.4),
        model("c", 0.4, 0.9, 0.1),
    ]
    best = champion(models, 0.5)
    assert best is not None and best.method == "b"
    assert champion(models, 0.7) is None


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


def test_rounds_are_told_again_from_the_history(finished: Path) -> None:
    record = read_record(finished, read_graph(finished), "magnitude-0.5")
    assert {n: row["best_risk"] for n, row in record.rounds.items()} == {1: 1, 2: 1 / 2, 3: 1 / 3}
    assert record.rounds[1]["mean_risk"] == 1.5


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
