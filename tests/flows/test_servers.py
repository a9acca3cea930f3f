"""Start-up checks of shared servers: one small object is written and deleted, or a message told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from dvc.repo import Repo

from efficientllava.errors import UserError
from efficientllava.parameters import TrackingParameters
from flows.tracking.servers import check_artifacts, check_database, remote_trouble, usual_artifacts
from flows.tracking.tracking import Tracking
from tests.flows.shared_servers import BUCKET, Servers, free_port, needs_servers, objects, servers

__all__ = ["servers"]
PLACE = f"s3://{BUCKET}/checked"


@pytest.fixture
def client(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Servers:
    """The servers, with the environment of their clients in this process."""
    for name, value in servers.environment.items():
        monkeypatch.setenv(name, value)
    forget_clients()
    return servers


def forget_clients() -> None:
    """MLflow keeps a client of S3 with its address, and boto3 a session with its credentials."""
    import boto3
    from mlflow.store.artifact.s3_artifact_repo import _cached_get_s3_client

    _cached_get_s3_client.cache_clear()
    boto3.DEFAULT_SESSION = None


def remote(root: Path, url: str) -> Path:
    Repo.init(str(root), no_scm=True)
    lines = ["[core]", "no_scm = true", "remote = team", "['remote \"team\"']", f"url = {url}"]
    (root / ".dvc" / "config").write_text("\n".join(lines) + "\n")
    return root


@needs_servers
def test_a_store_that_works_is_left_as_it_was(client: Servers, tmp_path: Path) -> None:
    before = objects(client)
    check_artifacts(PLACE, client.database("mlflow"))
    assert remote_trouble(remote(tmp_path, f"s3://{BUCKET}/dvc")) is None
    assert objects(client) == before


@needs_servers
def test_a_store_that_does_not_work_is_told(
    client: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, told in ((f"{PLACE[:-8]}-gone/x", "NoSuchBucket"),):
        with pytest.raises(UserError, match=told) as error:
            check_artifacts(place, client.database("mlflow"))
        assert "nothing has been run yet" in str(error.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    forget_clients()
    with pytest.raises(UserError, match="cannot be written .*connect"):
        check_artifacts(PLACE, client.database("mlflow"))
    told_of = remote_trouble(remote(tmp_path, f"s3://{BUCKET}/dvc"))
    assert told_of is not None and told_of.startswith("`dvc push` will fail: remote team")


@needs_servers
def test_missing_credentials_are_told(client: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    forget_clients()
    with pytest.raises(UserError, match="(?i)credentials"):
        check_artifacts(PLACE, client.database("mlflow"))


def test_missing_drivers_are_told_with_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("boto3", "psycopg2"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match="needs the module psycopg2") as error:
        check_database("postgresql://user:password@host/mlflow")
    assert "password" not in str(error.value)
    with pytest.raises(UserError, match="needs the module boto3"):
        check_artifacts("s3://bucket/x", "postgresql://host/mlflow")
    check_database("sqlite:///mlflow.db")
    check_database("http://127.0.0.1:5000")


def test_a_shared_database_needs_a_shared_place(tmp_path: Path) -> None:
    """MLflow's default for artifacts is known of SQLite and of servers, not of PostgreSQL."""
    with pytest.raises(UserError, match=r"tracking\.artifacts"):
        usual_artifacts("postgresql://host/mlflow")
    assert usual_artifacts("http://127.0.0.1:5000") is None
    assert usual_artifacts(f"sqlite:///{tmp_path}/mlflow.db") == f"file://{tmp_path}/mlruns"


@needs_servers
def test_mlflow_on_postgresql_with_artifacts_on_s3(client: Servers, tmp_path: Path) -> None:
    parameters = TrackingParameters(
        uri=client.database("mlflow"), artifacts=f"s3://{BUCKET}/mlflow", experiment="it's odd"
    )
    tracking = Tracking(parameters, tmp_path)
    place = tracking.client.get_experiment(tracking.experiment).artifact_location
    assert place == f"s3://{BUCKET}/mlflow"
    run = tracking.client.create_run(tracking.experiment).info.run_id
    (tmp_path / "note.txt").write_text("kept")
    tracking.client.log_artifact(run, str(tmp_path / "note.txt"))
    assert any(name.endswith("note.txt") for name in objects(client))
    gone = parameters.model_copy(
        update={"uri": f"postgresql://team@127.0.0.1:{free_port()}/mlflow"}
    )
    with pytest.raises(UserError, match="cannot be used .*refused"):
        Tracking(gone, tmp_path)
