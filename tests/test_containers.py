"""Dockerfile, compose.yaml and the start of a container, as far as they run without an engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = YAML(typ="safe").load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def stages() -> list[str]:
    """The stages of the Dockerfile, without comments."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    return ["FROM" + stage for stage in text.split("FROM")[1:]]


def test_the_image_has_no_development_tools() -> None:
    packages, final = stages()
    [extras] = re.findall(r"'\.\[([a-z,]+)\]'", packages)
    assert "dev" not in extras and "pipeline" in extras and "servers" in extras
    assert "apt-get install" not in packages and "git" not in final and "gcc" not in final
    assert "USER 1000" in final and "COPY --from=packages /venv" in final
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {"deploy/secrets", ".git", ".dvc/config.local", "tests"} <= set(ignored)
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_checked_and_keeps_what_must_last(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"] and service["restart"] == "unless-stopped"
    for volume in service.get("volumes", []):
        source = volume.partition(":")[0]
        assert source in COMPOSE["volumes"] or (ROOT / source).is_file()
    for secret in service.get("secrets", []):
        assert COMPOSE["secrets"][secret]["file"].startswith("deploy/secrets/")
    for port in service.get("ports", []):
        assert port.startswith("${BIND:-127.0.0.1}:")
    told = str(service.get("environment", {})) + str(
        service["command"] if "command" in service else ""
    )
    assert not re.search(r"(PASSWORD|SECRET_KEY|SECRET)(=|': ')[\"']?[a-z0-9]{8}", told)


def test_the_images_files_that_a_container_starts_from_exist() -> None:
    script = (ROOT / "deploy" / "entrypoint").read_text()
    parts = " ".join(re.findall(r"for part in (.*); do", script)).split()
    assert len(parts) == 8 and all((ROOT / part).exists() for part in parts)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert not {*parts, "deploy"} & set(ignored)


def started(app: Path, workspace: Path, command: str, **environment: str) -> str:
    done = subprocess.run(
        [app / "deploy" / "entrypoint", "sh", "-c", command],
        env={
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "WORKSPACE": str(workspace),
            **environment,
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_new_image_keeps_the_workspace(tmp_path: Path) -> None:
    app, workspace = tmp_path / "app", tmp_path / "workspace"
    for name in ("dvc.yaml", ".dvcignore", "pyproject.toml", "params.yaml"):
        app.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, app / name)
    for name in ("efficientllava", "tasks", "flows", "experiments", ".dvc", "deploy"):
        (app / name).mkdir()
        (app / name / "first.py").write_text("")
    shutil.copyfile(ROOT / ".dvc" / "config", app / ".dvc" / "config")
    shutil.copy2(ROOT / "deploy" / "entrypoint", app / "deploy" / "entrypoint")
    workspace.mkdir()
    assert started(app, workspace, "pwd").strip() == str(workspace.resolve())
    assert (workspace / ".dvc" / "config.local").read_text().split() == [
        *("[core]", "no_scm", "=", "true")
    ]
    for kept in ("dvc.lock", "experiments/table.md", ".dvc/cache", "params.yaml"):
        (workspace / kept).write_text("mine")
    (app / "flows" / "first.py").rename(app / "flows" / "second.py")
    started(app, workspace, "true")
    assert [path.name for path in (workspace / "flows").iterdir()] == ["second.py"]
    for kept in ("dvc.lock", "experiments/table.md", ".dvc/cache", "params.yaml"):
        assert (workspace / kept).read_text() == "mine"
    assert not list(workspace.glob(".*.new"))


def test_secrets_come_from_files(tmp_path: Path) -> None:
    secret = tmp_path / "it's secret"
    secret.write_text("pass word's")
    shown = started(
        ROOT,
        Path(),
        'echo "$PGPASSWORD/${PGPASSWORD_FILE:-gone}"',
        PGPASSWORD_FILE=str(secret),
        WORKSPACE="",
    )
    assert shown == "pass word's/gone\n"


def test_secrets_are_made_once(tmp_path: Path) -> None:
    script = tmp_path / "deploy" / "make_secrets"
    script.parent.mkdir()
    shutil.copy2(ROOT / "deploy" / "make_secrets", script)
    subprocess.run([script], check=True)
    made = {path.name: path.read_text() for path in (script.parent / "secrets").iterdir()}
    assert {f"deploy/secrets/{name}" for name in made} == {
        secret["file"] for secret in COMPOSE["secrets"].values()
    }
    assert made["s3_secret"] in made["s3_credentials"] and len(made["postgres_password"]) == 48
    assert subprocess.run([script], stderr=subprocess.DEVNULL).returncode != 0
    assert (script.parent / "secrets").stat().st_mode & 0o77 == 0
