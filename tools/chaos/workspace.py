"""The workspace of the cases: a clone in which the smallest pipeline has run, and copies of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.utils.serialize import dump_yaml, load_yaml

from efficientllava.errors import UserError
from efficientllava.files import file_digest, read_json, value_digest, write_json

ROOT = Path(__file__).parents[2]
PARAMETERS = Path("tests/smallest_params.yaml")
DECISIVE = ("efficientllava", "tasks", "flows", "dvc.yaml", str(PARAMETERS))
FACTS = "facts.json"
CACHES = "caches"


def commit_of(root: Path) -> tuple[str, str]:
    """The commit that is checked out, and a key of what decides how the pipeline runs.

    Raises:
        UserError: the folder is no git repository.
    """
    decisive = [f"HEAD:{name}" for name in DECISIVE]
    done = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD", *decisive], capture_output=True, text=True
    )
    if done.returncode:
        raise UserError("chaos works in a clone of a git repository", where=str(root))
    commit, *trees = done.stdout.split()
    return commit[:10], value_digest(trees)[:10]


def clone(root: Path, folder: Path) -> None:
    """Make `folder` a workspace with the committed code, the smallest parameters and no git."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", str(root), str(folder)], check=True)
    shutil.rmtree(folder / ".git")
    shutil.copyfile(folder / PARAMETERS, folder / "params.yaml")
    config = folder / ".dvc" / "config"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("[core]\n", "[core]\n    no_scm = true\n"), encoding="utf-8")


def copy(source: Path, target: Path) -> None:
    """Copy a workspace; files that share their bytes in the first share them in the second."""
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def environment(folder: Path, more: Mapping[str, str]) -> dict[str, str]:
    """The variables of a run in a workspace: none that leads to another one."""
    ours = ("EFFICIENTLLAVA_", "PREFECT_", "MLFLOW_", "DVC_", "NUMBA_", "MPLCONFIGDIR")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    return {**kept, "PATH": path, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", **more}


def is_finished(folder: Path, stage: str) -> bool:
    """Whether DVC has the outputs of a stage."""
    lock = folder / "dvc.lock"
    return lock.is_file() and stage in load_yaml(str(lock)).get("stages", {})


def forget(folder: Path, stage: str) -> None:
    """Let DVC run a stage again: what it made is gone, from the cache of runs too."""
    lock = folder / "dvc.lock"
    content = load_yaml(str(lock))
    for out in content["stages"].pop(stage)["outs"]:
        path = folder / out["path"]
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    dump_yaml(str(lock), content)
    shutil.rmtree(folder / ".dvc" / "cache" / "runs", ignore_errors=True)


def forget_records(folder: Path) -> None:
    """Remove MLflow's database and files."""
    for path in folder.glob("mlflow.db*"):
        path.unlink()
    shutil.rmtree(folder / "mlruns", ignore_errors=True)


def forget_work(folder: Path) -> None:
    """Remove databases and unfinished work; compiled kernels stay."""
    for path in (folder / ".work").iterdir():
        if path.is_dir() and path.name != CACHES:
            shutil.rmtree(path)


def outputs(folder: Path) -> dict[str, str]:
    """sha256 of every file of artifacts/, by its path."""
    root = folder / "artifacts"
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): file_digest(path) for path in files}


def work_files(folder: Path) -> list[str]:
    """Every file of .work/ but of its caches, by its path."""
    root = folder / ".work"
    found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found if path.parts[0] != CACHES)


@dataclass(frozen=True)
class Facts:
    """What an undisturbed run left.

    Attributes:
        stages: in the order in which they ran.
        seconds: that each stage took.
        events: that each stage reported, see `flow.events_in`.
        digests: of the files in artifacts/ that hold no times.
        timed: files that differ when the stages TIMED run once more: they hold times.
        work: files of .work/.
        records: of MLflow, see `check.mlflow_records`.
    """

    stages: list[str]
    seconds: dict[str, float]
    events: dict[str, list[str]]
    digests: dict[str, str]
    timed: list[str]
    work: list[str]
    records: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write them beside the workspace that they are about."""
        write_json(folder / FACTS, vars(self))

    @classmethod
    def load(cls, folder: Path) -> Facts:
        """Read them."""
        return cls(**read_json(folder / FACTS))


def journal(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of JSON lines; a last line that was not finished is left out."""
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)
