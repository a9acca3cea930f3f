"""A clone that was moved or copied finds MLflow's artifacts where they are now."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from efficientllava.parameters import TrackingParameters
from flows.tracking.moved import follow_clone
from flows.tracking.tracking import Tracking

PARAMETERS = TrackingParameters()


def noted(clone: Path) -> str:
    """A run with an artifact, in a new clone."""
    clone.mkdir()
    tracking = Tracking(PARAMETERS, clone)
    run: str = tracking.client.create_run(tracking.experiment, tags={}).info.run_id
    tracking.client.set_tag(run, "pipeline.workspace", str(clone))
    (clone / "note.txt").write_text(clone.name)
    tracking.client.log_artifact(run, str(clone / "note.txt"))
    return run


def read(clone: Path, run: str, into: Path) -> str:
    into.mkdir()
    client = Tracking(PARAMETERS, clone).client
    return Path(client.download_artifacts(run, "note.txt", str(into))).read_text()


@pytest.mark.parametrize("name", ["moved", "it's 100% other"])
def test_a_moved_clone_keeps_its_artifacts(tmp_path: Path, name: str) -> None:
    run = noted(tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / name)
    assert read(tmp_path / name, run, tmp_path / "out") == "first"
    uri = f"sqlite:///{tmp_path / name}/mlflow.db"
    assert follow_clone(uri) == 0, "the second time there is nothing to change"
    tracking = Tracking(PARAMETERS, tmp_path / name)
    again = tracking.client.create_run(tracking.experiment).info
    assert again.artifact_uri.startswith((tmp_path / name).as_uri())
    tags = tracking.client.get_run(run).data.tags
    assert tags["pipeline.workspace"] == str(tmp_path / name)


def test_a_copy_has_its_own_artifacts(tmp_path: Path) -> None:
    run = noted(tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    [file] = (tmp_path / "copy" / "mlruns").rglob("note.txt")
    file.write_text("of the copy")
    assert read(tmp_path / "copy", run, tmp_path / "one") == "of the copy"
    assert read(tmp_path / "first", run, tmp_path / "two") == "first"


def test_artifacts_that_lie_elsewhere_on_purpose_stay(tmp_path: Path) -> None:
    """Another folder's mlruns, of which nothing lies beside the database."""
    elsewhere = tmp_path / "disk" / "mlruns"
    elsewhere.mkdir(parents=True)
    (tmp_path / "clone" / "mlruns").mkdir(parents=True)
    parameters = PARAMETERS.model_copy(update={"artifacts": elsewhere.as_uri()})
    tracking = Tracking(parameters, tmp_path / "clone")
    run = tracking.client.create_run(tracking.experiment).info
    assert follow_clone(tracking.uri) == 0
    assert tracking.client.get_run(run.run_id).info.artifact_uri.startswith(elsewhere.as_uri())
    assert follow_clone("http://127.0.0.1:5000") == 0
