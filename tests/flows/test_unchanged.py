"""A run that has nothing to do starts no server; whatever there is to do is recorded."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

import flows.unchanged
from flows.runner.recording import Recording
from flows.unchanged import RECORDED, is_unchanged, recorded
from tasks.runtime.stage import read_parameters
from tests.flows.conftest import change


class Setting:
    """Stands in for Prefect's setting, which the tests' server has set."""

    def __init__(self, address: str | None) -> None:
        self.address = address

    def value(self) -> str | None:
        return self.address


@pytest.fixture
def alone(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace in which the pipeline has run, and no server is configured."""
    monkeypatch.setattr(flows.unchanged, "PREFECT_API_URL", Setting(None))
    return finished


def test_command_starts_no_server(
    finished: Path, command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    result = command()
    assert result.returncode == 0, result.stderr
    assert "every stage is Cached" in result.stdout
    assert "champion: version" in result.stdout
    assert not (tmp_path / "prefect" / "server.log").exists()


def test_a_finished_workspace_is_unchanged_and_has_its_champion(alone: Path) -> None:
    client = MlflowClient(f"sqlite:///{alone}/mlflow.db")
    client.delete_registered_model_alias("toy", "champion")
    assert is_unchanged(read_parameters())
    version = client.get_model_version_by_alias("toy", "champion")
    assert version.tags["method"] == "sparsegpt"


def test_a_configured_server_is_told_of_every_run(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting("http://127.0.0.1:4200/api")
    monkeypatch.setattr(flows.unchanged, "PREFECT_API_URL", setting)
    assert not is_unchanged(read_parameters())


def test_a_changed_parameter_is_something_to_do(alone: Path) -> None:
    change(alone, "rounds: 3, seed: 0", "rounds: 3, seed: 1")
    assert not is_unchanged(read_parameters())


def test_a_missing_output_is_something_to_do(alone: Path) -> None:
    (alone / "artifacts/model/config.json").unlink()
    assert not is_unchanged(read_parameters())


def test_a_broken_graph_is_left_to_the_run(alone: Path) -> None:
    (alone / "dvc.yaml").write_text("stages:\n  model:\n    commands: x\n")
    assert not is_unchanged(read_parameters())


def test_a_model_that_mlflow_lacks_is_something_to_do(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(f"sqlite:///{alone}/mlflow.db")
    [version] = client.search_model_versions("name = 'toy' and tags.method = 'dense'")
    client.delete_model_version("toy", version.version)
    assert not is_unchanged(read_parameters())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///another.db")
    assert not is_unchanged(read_parameters())


def test_a_killed_run_is_something_to_mend(alone: Path) -> None:
    with recorded(alone):  # as `kill -9` leaves it
        assert not is_unchanged(read_parameters())
    assert not (alone / RECORDED).exists()
    assert is_unchanged(read_parameters())


def test_a_run_that_lost_its_server_is_something_to_mend(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = Recording()
    monkeypatch.setattr("flows.unchanged.RECORDING", lost)
    with recorded(alone):
        lost.gone.set()
    assert not is_unchanged(read_parameters())
