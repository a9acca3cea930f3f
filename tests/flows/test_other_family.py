"""Qwen2.5-VL through the whole pipeline: no graphs, but the sparse runtime, report and MLflow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from efficientllava.files import read_json
from efficientllava.models.checkpoint import save_checkpoint
from tests.models.families import TINY
from tests.report.conftest import shown_times
from tests.tasks.conftest import ROOT, Workspace


@pytest.mark.slow
@pytest.mark.timeout(1900)  # two busy cores
def test_a_family_without_graphs_reaches_report_and_tracking(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    model, processor = TINY["qwen2_5_vl"].build()
    save_checkpoint(model, processor, tmp_path / "given")
    workspace.set_parameters({"model": {"source": "./given"}, "methods": ["magnitude"]})
    workspace.add_code()
    shutil.copytree(ROOT / "flows", tmp_path / "flows")
    (tmp_path / "experiments").mkdir()
    workspace.environment |= {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
    }
    outcome = workspace.run("flows.pipeline", timeout=1800)
    assert outcome.status == 0, outcome.error
    assert "Traceback" not in outcome.error

    artifacts = tmp_path / "artifacts"
    record = read_json(artifacts / "export" / "magnitude-0.5" / "export.json")
    missing, sparse = record["runtimes"]["onnxruntime"], record["runtimes"]["sparse"]
    assert "pruned" not in sparse  # times are apart
    assert missing["available"] is False
    assert missing["reason"].startswith("models of type 'qwen2_5_vl' are not exported")
    assert sparse["available"] and sparse["tokens_match"]
    page = shown_times(artifacts / "report")
    assert "Sparse decode ms" in page and "models of type" in page
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("efficientllava")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"dense", "magnitude-0.5"}
    pruned = runs["magnitude-0.5"]
    assert pruned.data.tags["summary/runtime"] == "sparse"
    assert pruned.data.metrics["summary/decode_ms"] > 0
    told = pruned.data.tags["export/runtimes.sparse.decode_speedup_told"]
    assert told.startswith(("faster ×", "slower ×", "no difference measured"))
    table = (artifacts / "report_timings" / "table.md").read_text(encoding="utf-8")
    assert told in table
    metrics = workspace.run("dvc", "metrics", "show", "--json")
    [shown] = json.loads(metrics.output).values()
    names = {"best", "dense", "magnitude"}
    assert set(shown["data"]) == {f"artifacts/summary/{name}.json" for name in names}
