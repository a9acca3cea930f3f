"""A DVC workspace with a checkpoint that MLflow knows as champion."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from dvc.repo import Repo
from mlflow import MlflowClient

from tests.export.conftest import checkpoints as checkpoints
from tests.export.conftest import prompts as prompts

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Registered:
    """Where a champion lies.

    Attributes:
        root: the DVC workspace.
        folder: the champion's checkpoint in it.
    """

    root: Path
    folder: Path
    uri: str
    client: MlflowClient


@pytest.fixture(scope="session")
def registered(
    checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Registered:
    root = tmp_path_factory.mktemp("it's a workspace") / "clone"
    folder = root / "artifacts" / "pruned"
    folder.parent.mkdir(parents=True)
    checkpoints["pruned"].rename(folder)
    checkpoints["pruned"].symlink_to(folder)
    (folder / "deeper").mkdir()
    (folder / "deeper" / "notes.json").write_text("{}")
    with Repo.init(str(root), no_scm=True) as repo:
        [stage] = repo.add(str(folder))
        digest = stage.outs[0].hash_info.value
    uri = f"sqlite:///{root}/mlflow.db"
    client = MlflowClient(uri, registry_uri=uri)
    client.create_registered_model("tiny")
    client.create_model_version("tiny", source=f"dvc://artifacts/pruned?md5={digest}")
    client.set_registered_model_alias("tiny", "champion", "1")
    return Registered(root, folder, uri, client)


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH that declares pyproject.toml's entry points for MLflow."""
    folder = tmp_path_factory.mktemp("plugin")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    points = project["entry-points"]["mlflow.artifact_repository"]
    declared = folder / "declared-0.dist-info"
    declared.mkdir()
    (declared / "METADATA").write_text("Metadata-Version: 2.1\nName: declared\nVersion: 0\n")
    lines = [f"{name} = {target}" for name, target in points.items()]
    text = "\n".join(["[mlflow.artifact_repository]", *lines])
    (declared / "entry_points.txt").write_text(text)
    return folder
