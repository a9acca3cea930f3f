"""What a finished pipeline has left in a clone: EFFICIENTLLAVA_CLONE names it (see .ci/run)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from efficientllava.files import read_json
from tasks.runtime.stage import read_parameters

pytestmark = pytest.mark.skipif(
    "EFFICIENTLLAVA_CLONE" not in os.environ,
    reason="EFFICIENTLLAVA_CLONE names no clone in which the pipeline has run",
)


@pytest.fixture(scope="module")
def clone() -> Path:
    return Path(os.environ["EFFICIENTLLAVA_CLONE"])


@pytest.fixture(scope="module")
def cells(clone: Path) -> list[str]:
    parameters = read_parameters(clone / "params.yaml")
    return [f"{m}-{ratio:g}" for m in parameters.methods for ratio in parameters.ratios]


def test_report_has_a_row_for_every_model(clone: Path, cells: list[str]) -> None:
    table = (clone / "artifacts" / "report" / "table.csv").read_text().splitlines()
    assert len(table) == 2 + len(cells)  # headings, dense, pruned models
    assert (clone / "artifacts" / "report" / "report.html").stat().st_size > 10_000


def test_table1_shares_the_models_of_the_pipeline(clone: Path) -> None:
    table = (clone / "experiments" / "table1" / "table.csv").read_text().splitlines()
    assert len(table) == 5  # headings, dense, three methods
    first = clone / "artifacts" / "pruned" / "sparsegpt-0.5" / "model.safetensors"
    again = clone / ".work" / "experiments" / "table1" / "seed0" / first.relative_to(clone)
    assert first.read_bytes() == again.read_bytes()


def test_dvc_finds_nothing_to_do(clone: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json"], cwd=clone, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    # the table that was made after the pipeline is not on the report's page yet
    assert json.loads(done.stdout) == {"report": [{"changed deps": {"experiments": "modified"}}]}, (
        done.stdout
    )


def test_pruned_models_equal_their_policies(clone: Path, cells: list[str]) -> None:
    """Loaded by plain transformers, in a process that has nothing of ours."""
    script = (
        "import json, sys, torch\n"
        "from transformers import AutoModelForImageTextToText\n"
        "for folder in sys.argv[1:]:\n"
        "    model = AutoModelForImageTextToText.from_pretrained(folder)\n"
        "    record = json.load(open(folder + '/pruning.json'))\n"
        "    modules = dict(model.named_modules())\n"
        "    for name, level in record['policy'].items():\n"
        "        weight = modules[name].weight\n"
        "        zeros, wanted = int((weight == 0).sum()), round(level * weight.numel())\n"
        "        assert zeros == wanted, (folder, name, zeros, wanted)\n"
    )
    folders = [str(clone / "artifacts" / "pruned" / cell) for cell in cells]
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, *folders], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_search_held_its_budget_and_beat_uniform(clone: Path, cells: list[str]) -> None:
    parameters = read_parameters(clone / "params.yaml")
    searched = [cell for cell in cells if cell.startswith("efficientllava")]
    assert searched
    for cell in searched:
        folder = clone / "artifacts" / "search" / cell
        policy, summary = read_json(folder / "policy.json"), read_json(folder / "search.json")
        low, high = (policy["ratio"] + end for end in parameters.search.band)
        rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        assert all(low - 1e-9 <= row["mean_sparsity"] <= high + 1e-9 for row in rows)
        assert summary["best_risk"] <= summary["uniform_risk_final_projector"]


def test_exported_models_answer_as_pytorch_does(clone: Path, cells: list[str]) -> None:
    for cell in cells:
        record = read_json(clone / "artifacts" / "export" / cell / "export.json")
        assert record["tokens_match"] is True
        times = read_json(clone / "artifacts" / "export_metrics" / f"{cell}.json")
        measured = [row for row in times["runtimes"].values() if row["available"]]
        assert measured and all(row["pruned"]["prefill_ms"] > 0 for row in measured)


def test_every_pruned_model_is_a_run_in_mlflow(clone: Path, cells: list[str]) -> None:
    import mlflow

    parameters = read_parameters(clone / "params.yaml")
    client = mlflow.MlflowClient(f"sqlite:///{clone}/mlflow.db")
    experiment = client.get_experiment_by_name(parameters.tracking.experiment)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(runs) >= len(cells)
    versions = client.search_model_versions(f"name='{parameters.tracking.registered_model}'")
    assert len(versions) >= len(cells)
