"""Workspaces for the stages: a folder with params.yaml in which the real commands run."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from dvc.utils.serialize import load_yaml
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]

# everything as small as the stages take it: seconds, and a model that knows nothing
TINY: dict[str, Any] = {
    "model": {
        "demo": {
            "width": 32,
            "mlp_width": 48,
            "blocks": 2,
            "heads": 2,
            "vision_steps": 1,
            "steps": 1,
            "batch_size": 8,
            "train_questions": 30,
            "validation_questions": 4,
            "test_questions": 12,
        }
    },
    "proxy": {"segments": 4, "segment_length": 32, "pairs": 8},
    "obs": {"block_size": 16},
    "search": {
        "candidates": 4,
        "rounds": 3,
        "survivors": 2,
        "projector_steps": 1,
        "projector_batch": 4,
    },
    "evaluation": {"questions": 12, "text_segments": 2},
    "export": {"repetitions": 3, "answers": 1, "new_tokens": 2},
    "machine": {"threads": 1, "workers": 1},
    "methods": ["magnitude", "efficientllava"],
}


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    error: str
    output: str = ""


@dataclass
class Workspace:
    """A folder in which stages run, with params.yaml and what earlier stages made."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def set_parameters(self, *changes: dict[str, Any]) -> None:
        """Write params.yaml: the repository's, made tiny, with changes section by section."""
        values = load_yaml(str(ROOT / "params.yaml"))
        for change in (TINY, *changes):
            _merge(values, change)
        with open(self.folder / "params.yaml", "w", encoding="utf-8") as file:
            YAML().dump(values, file)

    def add_dvc(self, dvc_yaml: str) -> None:
        """Make it a DVC repository without git, with the repository's settings."""
        (self.folder / "dvc.yaml").write_text(dvc_yaml)
        shutil.copyfile(ROOT / ".dvcignore", self.folder / ".dvcignore")
        (self.folder / ".dvc").mkdir()
        config = (ROOT / ".dvc" / "config").read_text()
        (self.folder / ".dvc" / "config").write_text(
            config.replace("[core]\n", "[core]\n    no_scm = true\n")
        )

    def add_code(self) -> None:
        """Make it a clone: dvc.yaml, the code that it lists, and a DVC repository without git."""
        for name in ("tasks", "efficientllava"):
            shutil.copytree(
                ROOT / name, self.folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        self.add_dvc((ROOT / "dvc.yaml").read_text())
        self.environment["PYTHONPATH"] = str(self.folder)

    def pretend_finished(self, *stages: str) -> None:
        """Let DVC take stages as done, with a folder of one file each in place of their outputs."""
        assert self.run("dvc", "repro", "parameters").status == 0
        for stage in stages:
            (self.folder / "artifacts" / stage).mkdir()
            (self.folder / "artifacts" / stage / "file").write_text(stage)
        assert self.run("dvc", "commit", "--force", *stages).status == 0

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", *arguments]

    def run(self, *arguments: str, timeout: float = 300) -> Outcome:
        """Run `python -m ARGUMENTS` as a process of its own."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env={**clean_environment(), **self.environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Outcome(done.returncode, done.stderr, done.stdout)


def clean_environment() -> dict[str, str]:
    """This process' environment, with the interpreter's folder first on the path."""
    kept = {name: value for name, value in os.environ.items() if name != "EFFICIENTLLAVA_RUN"}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT)}


def _merge(values: dict[str, Any], change: dict[str, Any]) -> None:
    for name, value in change.items():
        if isinstance(value, dict):
            _merge(values.setdefault(name, {}), value)
        else:
            values[name] = value


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty workspace with tiny parameters."""
    made = Workspace(tmp_path)
    made.set_parameters()
    return made


Here = Callable[..., Outcome]


def run_here(folder: Path, capture: Any, module: str, *arguments: str) -> Outcome:
    """Run `python -m MODULE ARGUMENTS` in this process: torch is loaded once for all tests."""
    before, argv, environment = Path.cwd(), sys.argv, dict(os.environ)
    os.chdir(folder)
    sys.argv = [f"{module.replace('.', '/')}.py", *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=False)
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        os.chdir(before)
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environment)
    return Outcome(status, capture.readouterr().err if capture else "")


@pytest.fixture
def here(capfd: Any) -> Here:
    """Run a stage's command in this process: `here(folder, "tasks.model")`."""

    def run(folder: Path, module: str, *arguments: str) -> Outcome:
        return run_here(folder, capfd, module, *arguments)

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifacts of the stages up to `proxy`, made once; tests copy what they damage."""
    made = Workspace(tmp_path_factory.mktemp("finished"))
    made.set_parameters()
    for stage in ("questions", "model", "proxy"):
        outcome = run_here(made.folder, None, f"tasks.{stage}")
        assert outcome.status == 0, stage
    return made.folder


@pytest.fixture
def ready(workspace: Workspace, finished: Path) -> Iterator[Workspace]:
    """A workspace in which the stages up to `proxy` have run; safe to damage."""
    shutil.copytree(finished / "artifacts", workspace.folder / "artifacts")
    yield workspace


def unpack_images(artifacts: Path) -> Path:
    """The folder of questions, whose images lie in images/ from now on."""
    questions = artifacts / "questions"
    with ZipFile(questions / "images.zip") as archive:
        archive.extractall(questions)
    return questions
