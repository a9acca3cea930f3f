"""The pipeline on a real model: its parameters, another model, another text, bad input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from efficientllava.errors import UserError
from efficientllava.parameters import Parameters
from efficientllava.parsing import parse_parameters
from flows import real
from flows.real import PTB, real_values
from tests.tasks.conftest import ROOT


@pytest.fixture(autouse=True)
def in_the_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_parameters_are_valid_and_name_the_real_model() -> None:
    parameters = parse_parameters(real_values(None, None, {}))
    assert parameters.model.source == "smollm2" and parameters.proxy.text == "demo"
    assert parameters.evaluation.text_segments * parameters.proxy.segment_length >= 64 * 256


def test_another_model_and_the_penn_treebank(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / f"ptb.{part}.txt").write_text("the text\n")
    values = real_values("owner/name", "abc", {PTB: str(tmp_path)})
    assert values["model"]["source"] == "owner/name" and values["model"]["revision"] == "abc"
    assert values["proxy"]["text"] == str(tmp_path)
    (tmp_path / "ptb.test.txt").unlink()
    with pytest.raises(UserError, match="there is no ptb.test.txt"):
        real_values(None, None, {PTB: str(tmp_path)})


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with what the workspace is made of."""
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    for name in ("params.yaml", "params.real.yaml", "dvc.yaml", ".dvcignore"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for name in ("efficientllava", "tasks"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_bytes((ROOT / ".dvc" / "config").read_bytes())
    return tmp_path


def test_the_links_name_the_mlflow_that_the_models_were_logged_to(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Parameters] = []
    monkeypatch.chdir(clone)
    monkeypatch.setattr(sys, "argv", ["flows.real"])
    monkeypatch.setattr(real, "run_to_end", lambda who, start, show: show(Parameters()))
    monkeypatch.setattr(real, "show_comparison", told.append)
    real.main()
    (parameters,) = told
    assert parameters.tracking.uri == f"sqlite:///{clone / 'mlflow.db'}"
    assert parameters.tracking.experiment == "efficientllava/real"


def test_a_model_that_is_not_there_is_reported_before_anything_starts(clone: Path) -> None:
    """As a command: exit status 2, one message, no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.real", "--source", "./no/such/folder"],
        cwd=clone,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{':'.join(sys.path)}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "no such model folder" in done.stderr and "./no/such/folder" in done.stderr
