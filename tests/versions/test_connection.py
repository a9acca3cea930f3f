"""Commands report at once that MLflow does not answer, or that an address is none."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from efficientllava.errors import UserError
from efficientllava.serving.source import checkpoint_of
from efficientllava.versions.connection import connected


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("http://127.0.0.1:1", "MLflow at http://127.0.0.1:1: does not answer"),
        ("http://[", "does not answer"),
        ("text.txt", "text.txt: is no address of an MLflow"),
        ("./folder", "is no address of an MLflow"),
        ("sqlite:///text.txt", "MLflow at sqlite:///text.txt: MLflow cannot be used"),
    ],
)
def test_an_mlflow_that_cannot_be_used(
    uri: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("no database")
    started = time.monotonic()
    with pytest.raises(UserError) as told, connected(uri) as mlflow:
        mlflow.version("3")
    said = str(told.value)
    assert problem in said and "by --uri: http://HOST:PORT" in said and "migrate" not in said
    if uri.startswith("http"):
        with pytest.raises(UserError, match=r"does not answer[^$]*by --tracking-uri"):
            with checkpoint_of("models:/toy@champion", uri):
                pass
        assert time.monotonic() - started < 5
