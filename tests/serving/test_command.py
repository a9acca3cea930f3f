"""The command: it starts, ends on request, and reports what keeps it from starting."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from efficientllava.cli import commands
from efficientllava.commands.ask import checkpoint_reply
from efficientllava.errors import UserError
from efficientllava.serving.server import _address, _listening
from efficientllava.serving.source import checkpoint_of, name_of


def test_sigterm_lets_an_answer_end(checkpoints: dict[str, Path]) -> None:
    """The process then ends with status 0, as nothing went wrong."""
    process = subprocess.Popen(
        [sys.executable, "-m", "efficientllava.cli", "serve", str(checkpoints["packed"])]
        + ["--port", "0", "--name", "mine"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        found = re.fullmatch(r"mine is ready at (http://127\.0\.0\.1:\d+/v1)\n", said)
        assert found, said + process.stderr.read()
        client = openai.OpenAI(base_url=found[1], api_key="none", max_retries=0)
        answers: list[Any] = []

        def ask() -> None:
            messages: Any = [{"role": "user", "content": "w1"}]
            answers.append(
                client.chat.completions.create(model="mine", messages=messages, max_tokens=200)
            )

        asking = threading.Thread(target=ask)
        stream = client.chat.completions.create(
            model="mine", messages=[{"role": "user", "content": "w2"}], max_tokens=200, stream=True
        )
        asking.start()  # waits behind the stream
        while httpx.get(found[1].replace("/v1", "/ready")).json()["waiting"] == 0:
            assert asking.is_alive()
        process.send_signal(signal.SIGTERM)
        assert len([chunk for chunk in stream if chunk.choices[0].delta.content]) > 100
        asking.join(60)
        expected = checkpoint_reply(checkpoints["packed"], None, "w1", False, 200, 1)
        assert answers[0].choices[0].message.content == expected
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def error_of(*arguments: str) -> str:
    result = CliRunner().invoke(commands, ["serve", *arguments])
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def test_what_keeps_it_from_starting(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = str(checkpoints["pruned"])
    assert "no such folder" in error_of(str(tmp_path / "nowhere"))
    assert "config.json" in error_of(str(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"--port {port}: cannot listen there" in error_of(good, "--port", port)
    for host in ("nowhere.invalid", "300.1.1.1"):
        said = error_of(good, "--host", host)
        assert f"--host {host}: no such address" in said and "port" not in said
    assert "-> take 127.0.0.1" in error_of(good, "--host", "192.0.2.1", "--insecure")
    assert "--device" in error_of(good, "--device", "gpu")
    with monkeypatch.context() as environment:
        environment.setenv("EFFICIENTLLAVA_API_KEY", " ")
        assert "the key is empty" in error_of(good)
    monkeypatch.delenv("EFFICIENTLLAVA_API_KEY", raising=False)
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        said = error_of(str(tmp_path / "unread"), "--host", host)
        assert f"--host {host}: whoever reaches" in said and "set EFFICIENTLLAVA_API_KEY" in said
    for command in (["serve", good], ["ask", good, "-", "w1"]):
        done = CliRunner().invoke(commands, [*command, "--threads", "20000"])
        assert done.exit_code == 2 and "1024" in done.output
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "no MLflow is named" in error_of("models:/efficientllava@champion")
    assert not list(tmp_path.iterdir())


def test_the_address_of_all_addresses_is_one_that_others_can_use() -> None:
    for host, expected in (("127.0.0.1", "http://127.0.0.1:"), ("0.0.0.0", "http://")):
        with _listening(host, 0) as listener:
            address = _address(listener)
        assert address.startswith(expected) and "//0.0.0.0" not in address


def test_weights_that_cannot_be_used_are_named(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """They are read while the server listens already."""
    for file in checkpoints["pruned"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    name = sorted(weights)[0]
    weights[name] = np.full_like(weights[name], np.nan)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert "NaN" in error_of(str(tmp_path), "--port", "0")


def test_a_version_is_fetched_by_its_name(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = MlflowClient("sqlite:///mlflow.db", registry_uri="sqlite:///mlflow.db")
    client.create_registered_model("tiny")
    version = client.create_model_version("tiny", str(checkpoints["pruned"]))
    client.set_registered_model_alias("tiny", "champion", version.version)
    with checkpoint_of("models:/tiny@champion") as folder:
        assert folder != checkpoints["pruned"]
        for file in checkpoints["pruned"].iterdir():
            assert (folder / file.name).read_bytes() == file.read_bytes()
    assert not folder.exists()
    assert name_of("models:/tiny@champion") == "tiny@champion"
    with pytest.raises(UserError, match=r"models:/tiny@other at sqlite.*MLflow cannot fetch it"):
        with checkpoint_of("models:/tiny@other"):
            pass
