"""A clone's environment: stages find its python, and a moved clone makes it anew."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the Makefile and a bare environment that `make install` made."""
    made = tmp_path / "first clone"
    venv.create(made / ".venv", symlinks=True)
    site = next((made / ".venv" / "lib").glob("python*/site-packages"))
    shutil.copyfile(ROOT / "tools" / "python_of_stages.pth", site / "python_of_stages.pth")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy2(ROOT / name, made / name)
    (made / ".venv" / "installed").write_text(f"{made.resolve()}\n")
    return made


def test_a_shell_finds_the_environment_s_python(clone: Path) -> None:
    """As DVC starts a stage: `.venv/bin/dvc repro` without an activated environment."""
    start = "import subprocess; subprocess.run('command -v python', shell=True, check=True)"
    for path in ("/usr/bin:/bin", f"/usr/bin:{clone}/.venv/bin", f"{clone}/.venv/bin:/usr/bin"):
        done = subprocess.run(
            [clone / ".venv" / "bin" / "python", "-c", start],
            env={"PATH": path},
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == f"{clone}/.venv/bin/python", done.stderr


def planned(clone: Path) -> str:
    """The commands of `make install`, which are not run."""
    done = subprocess.run(
        ["make", "--dry-run", "install", f"PYTHON={sys.executable}", "UV="],
        cwd=clone,
        env=dict(os.environ),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_only_a_moved_clone_is_installed_again(clone: Path, tmp_path: Path) -> None:
    assert "pip install" not in planned(clone)
    moved = clone.rename(tmp_path / "it's moved")
    told = planned(moved)
    assert "rm -rf .venv" in told and "pip install" in told
    assert "python_of_stages.pth" in told and "> .venv/installed" in told
