"""`efficientllava compare`, `promote`, `rollback` and `fetch` in a workspace that has run."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner, Result

from efficientllava.cli import commands
from efficientllava.errors import UserError


def efficientllava(*arguments: str) -> Result:
    return CliRunner().invoke(commands, list(arguments))


def told(*arguments: str) -> str:
    """The message of a command that fails as it should."""
    error = efficientllava(*arguments).exception
    assert isinstance(error, UserError)
    return str(error)


@pytest.fixture
def client(finished: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{finished}/mlflow.db")


def number(client: MlflowClient, method: str) -> str:
    [version] = client.search_model_versions(f"name = 'toy' and tags.method = '{method}'")
    return str(version.version)


def test_compare_shows_what_differs(client: MlflowClient) -> None:
    result = efficientllava("compare", number(client, "magnitude"), "champion")
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "method magnitude sparsegpt" in text
    assert "search.seed" not in text  # the same in both
    assert "accuracy_percent 80.00 ± 1.00 85.00 ± 1.00 +5" in text
    assert "Policies: 0 of 1 matrices differ none" in text
    address = efficientllava("compare", "models:/toy@champion", number(client, "dense"))
    assert "sparsegpt-0.5" in address.output and ": dense" in address.output


def test_rollback_and_promote(client: MlflowClient) -> None:
    assert "there was no champion before it" in told("rollback")
    other = number(client, "magnitude")
    assert "was checked against no champion" in told("promote", other)
    present = client.get_model_version_by_alias("toy", "champion").version
    client.set_model_version_tag("toy", other, "promotion.against", str(present))
    assert f"(before: {present})" in efficientllava("promote", other).output
    assert client.get_model_version_by_alias("toy", "champion").tags["method"] == "magnitude"
    assert client.get_model_version_by_alias("toy", "previous").tags["method"] == "sparsegpt"
    result = efficientllava("rollback")
    assert result.exit_code == 0 and f"rolled back from {other}" in result.output
    assert client.get_model_version_by_alias("toy", "champion").tags["method"] == "sparsegpt"


def test_fetch_writes_the_folder(finished: Path, client: MlflowClient) -> None:
    result = efficientllava("fetch", "@champion", "out")
    assert result.exit_code == 0, result.output
    pruned = finished / "artifacts" / "pruned" / "sparsegpt-0.5"
    fetched = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert fetched == {path.name: path.read_bytes() for path in pruned.iterdir()}
    assert "is there already" in told("fetch", "@champion", "out")


def test_what_is_not_there_is_told(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = told("compare", "1", "99")
    assert "there is no version 99" in message and "known: 1, 2, 3, @champion" in message
    assert "no registered model of that name" in told("fetch", "champion", "out", "--name", "else")
    assert "is neither models:/NAME/NUMBER" in told("compare", "1", "models:/toy")
    monkeypatch.chdir(tmp_path)
    assert "there is no such MLflow database" in told("rollback")
    assert not list(tmp_path.glob("mlflow.db"))
