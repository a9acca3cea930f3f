"""A team on shared servers: compose.yaml's commands, and every command of docs/team.md about DVC.

PostgreSQL and S3 are real servers on this machine; the stages are the toy's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.flows.conftest import ROOT, TOY
from tests.flows.shared_servers import (
    PATIENCE,
    Servers,
    free_port,
    needs_servers,
    objects,
    process_of,
    servers,
)
from tests.page_commands import RESULTS, commands

__all__ = ["servers"]
pytestmark = [pytest.mark.slow, needs_servers]
SERVICES: dict[str, Any] = YAML(typ="safe").load((ROOT / "compose.yaml").read_text())["services"]
BIN = Path(sys.executable).parent
SHOW = "dvc exp show --only-changed --drop '^(artifacts|efficientllava|tasks|experiments)'"


@dataclass
class Team:
    """The servers' addresses, as variables of whoever works with them."""

    servers: Servers
    environment: dict[str, str]

    def run(self, command: str, folder: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euc", command],
            cwd=folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )


@contextmanager
def service(name: str, servers: Servers, folder: Path, health: str) -> Iterator[int]:
    """Run a service's command and variables of compose.yaml here, at another port."""
    usual = SERVICES[name]["ports"][0].rpartition(":")[2]
    port = free_port()

    def here(text: str) -> str:
        text = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", text).replace("@postgres/", "@127.0.0.1/")
        text = text.replace("team@127.0.0.1/", f"team@127.0.0.1:{servers.port}/")
        return text.replace(f"--port={usual}", f"--port={port}").replace("0.0.0.0", "127.0.0.1")

    variables = {
        key: here(str(value))
        for key, value in SERVICES[name]["environment"].items()
        if not key.endswith("_FILE") and not key.startswith("AWS_") and key != "WORKSPACE"
    }
    environment = {**os.environ, **servers.environment, **variables, "PGPASSWORD": "unused"}
    environment |= {"PREFECT_HOME": str(folder / name), "PATH": f"{BIN}:{os.environ['PATH']}"}
    command = [here(word) for word in SERVICES[name]["command"]]
    url = f"http://127.0.0.1:{port}{health}"
    with process_of(command, environment, folder / f"{name}.log", url):
        yield port


@pytest.fixture(scope="module")
def team(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("services")
    with ExitStack() as started:
        mlflow = started.enter_context(service("mlflow", servers, folder, "/health"))
        prefect = started.enter_context(service("prefect", servers, folder, "/api/health"))
        addresses = {
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{mlflow}",
            "PREFECT_API_URL": f"http://127.0.0.1:{prefect}/api",
        }
        assert set(addresses) <= set(SERVICES["pipeline"]["environment"])
        people = ("AUTHOR_NAME", "AUTHOR_EMAIL", "COMMITTER_NAME", "COMMITTER_EMAIL")
        environment = {
            **os.environ,
            **servers.environment,
            **addresses,
            **{f"GIT_{name}": "team" for name in people},
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "COLUMNS": "160",
        }
        yield Team(servers, environment)


def give_environment(clone: Path) -> None:
    """Let `make` find what `make install` makes: this interpreter's environment."""
    (clone / ".venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (clone / ".venv" / name).symlink_to(BIN.parent / name)
    (clone / ".venv" / "installed").write_text(f"{clone.resolve()}\n")


@pytest.fixture(scope="module")
def clone(team: Team, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of a repository with the toy's stages, and the repository's own settings."""
    folder = tmp_path_factory.mktemp("team")
    source = folder / "clone"
    shutil.copytree(TOY, source, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "stages.yaml").rename(source / "dvc.yaml")
    for name in ("Makefile", ".gitignore", ".dvcignore", "pyproject.toml", "constraints.txt"):
        shutil.copyfile(ROOT / name, source / name)
    (source / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copyfile(ROOT / ".dvc" / name, source / ".dvc" / name)
    made = team.run(
        "git init -q --bare -b main ../origin.git; git init -q -b main; git add -A; "
        "git commit -qm first; git remote add origin ../origin.git; git push -q -u origin main",
        source,
    )
    assert made.returncode == 0, made.stderr
    give_environment(source)
    return source


def test_every_command_of_the_team_page_runs(team: Team, clone: Path) -> None:
    folder, said = clone, {}
    for command in commands("team.md", RESULTS):
        if command.startswith("cd "):
            folder = folder / command.removeprefix("cd ")
            give_environment(folder)
            continue
        command = command.replace("URL", str(clone.parent / "origin.git"))
        done = team.run(command, folder)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        said.setdefault(command, []).append(done.stdout + done.stderr)
    first, again = said["make demo"]
    assert "Running" in first or "runs because" in first
    # all that a colleague has is what was pulled: nothing was computed
    assert "runs because" not in again and folder.name == "colleague"
    assert again.count("Cached(") >= 9
    assert outputs_are_links(folder) and outputs_are_links(clone)
    [shown] = said[SHOW]
    assert "longer" in shown and "longest" in shown
    assert max(map(len, shown.splitlines())) <= 160
    [changed] = said["dvc params diff"]
    assert "search.rounds" in changed and "4" in changed
    # the records are in PostgreSQL, artifacts and outputs in the bucket
    names = objects(team.servers)
    assert any(name.startswith("dvc/files/md5/") for name in names)
    assert any(name.startswith("mlflow/") and name.endswith("policy.json") for name in names)
    assert not any("start-up-checks" in name for name in names)
    assert rows(team, "mlflow", "SELECT count(*) FROM model_versions") >= 3
    assert rows(team, "prefect", "SELECT count(*) FROM flow_run") >= 2


def outputs_are_links(folder: Path) -> bool:
    # beside these folders lies decision.js, which the flow writes and DVC does not keep
    files = [path for path in (folder / "artifacts").glob("*/**/*") if path.is_file()]
    return bool(files) and all(path.stat().st_nlink > 1 for path in files if path.stat().st_size)


def rows(team: Team, database: str, query: str) -> int:
    return int(value(team, database, query))


def value(team: Team, database: str, query: str) -> Any:
    """The first column of the first row."""
    import psycopg2

    with psycopg2.connect(team.servers.database(database)) as connection:
        cursor = connection.cursor()
        cursor.execute(query)
        return cursor.fetchone()[0]


def champion_of(team: Team) -> str:
    """The method of the champion, as PostgreSQL has it."""
    query = """SELECT t.value FROM registered_model_aliases a JOIN model_version_tags t
        ON t.name = a.name AND t.version = a.version AND t.key = 'method'
        WHERE a.name = 'toy' AND a.alias = 'champion'"""
    return str(value(team, "mlflow", query))


def recorded(team: Team, check: str) -> str:
    """What the guard wrote about the version of magnitude."""
    query = f"""SELECT t.value FROM model_version_tags t JOIN model_version_tags m
        ON m.name = t.name AND m.version = t.version AND m.key = 'method'
        WHERE m.value = 'magnitude' AND t.key = 'promotion.{check}'
        ORDER BY t.version DESC LIMIT 1"""
    return str(value(team, "mlflow", query))


def run_pipeline(team: Team, folder: Path) -> str:
    done = team.run("python -m flows.pipeline", folder)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_trial_leaves_the_better_champion_and_a_rollback_restores_it(
    team: Team, clone: Path
) -> None:
    params, stage = (clone / "params.yaml").read_text(), (clone / "stage.py").read_text()
    run_pipeline(team, clone)
    assert champion_of(team) == "sparsegpt"
    tables = "SELECT count(*) FROM artifact WHERE key = 'promotion'"
    before = rows(team, "prefect", tables)
    try:
        (clone / "params.yaml").write_text(re.sub("methods: .*", "methods: [magnitude]", params))
        said = run_pipeline(team, clone)
        assert "champion stays version" in said
        assert champion_of(team) == "sparsegpt"
        assert recorded(team, "verdict") == "fail"
        assert recorded(team, "verified").startswith("pass: ")
        assert recorded(team, "accuracy").startswith("fail: 80.00 %, the champion's 85.00 %")
        assert recorded(team, "complete_run").startswith("fail: the run left out sparsegpt")
        assert rows(team, "prefect", tables) == before + 1
        data = value(team, "prefect", f"{tables.replace('count(*)', 'data')} ORDER BY created DESC")
        assert {(row["check"], row["result"]) for row in json.loads(data)} >= {
            ("verified", "pass"),
            ("accuracy", "fail"),
            ("complete run", "fail"),
        }
        # a better one takes its place, and is taken back; other weights let its evaluation run
        better = stage.replace('"magnitude-0.5": 0.80', '"magnitude-0.5": 0.95')
        (clone / "stage.py").write_text(better.replace("bytes(4)", "bytes([0, 0, 0, 63])"))
        run_pipeline(team, clone)
        assert champion_of(team) == "magnitude"
        assert recorded(team, "verdict") == "pass, champion"
        back = team.run("efficientllava rollback", clone)
        assert back.returncode == 0 and "rolled back from" in back.stdout, back.stderr
        assert champion_of(team) == "sparsegpt"
        run_pipeline(team, clone)
        assert champion_of(team) == "sparsegpt"
        assert recorded(team, "not_rolled_back").startswith("fail: rolled back on")
        again = team.run("dvc repro", clone)
        assert again.returncode == 0 and "up to date" in again.stdout + again.stderr
    finally:
        (clone / "params.yaml").write_text(params)
        (clone / "stage.py").write_text(stage)


def test_the_servers_page_s_commands_start_what_a_run_uses(team: Team, clone: Path) -> None:
    """Other servers on the same PostgreSQL and S3, as docs/servers.md starts them."""
    mlflow, prefect = free_port(), free_port()

    def here(command: str) -> str:
        command = re.sub(r"\b5000\b", str(mlflow), re.sub(r"\b4200\b", str(prefect), command))
        command = command.replace("@db/", f"@127.0.0.1:{team.servers.port}/")
        return command.replace("https://s3.example.org", team.servers.endpoint)

    credentials, *shown = commands("servers.md", "## Without")
    assert len(shown) == 4
    ready = (f"http://127.0.0.1:{mlflow}/health", f"http://127.0.0.1:{prefect}/api/health")
    environment = {**team.environment, "PREFECT_SERVER_API_PORT": str(prefect)}
    environment |= {"PREFECT_HOME": str(clone.parent / "home"), "PGPASSWORD": "unused"}
    del environment["PREFECT_API_URL"], environment["MLFLOW_TRACKING_URI"]
    with ExitStack() as started:
        for number, (command, url) in enumerate(zip(shown[:2], ready, strict=True)):
            log = clone.parent / f"server{number}.log"
            line = f"{here(credentials)}; exec env {here(command)}"
            started.enter_context(process_of(["bash", "-euc", line], environment, log, url))
        uses = "; ".join(map(here, shown[2:]))
        done = subprocess.run(
            ["bash", "-euc", uses],
            cwd=clone,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    assert done.returncode == 0, done.stderr
    assert f"http://127.0.0.1:{prefect}/runs/flow-run/" in done.stdout + done.stderr


def test_what_cannot_be_used_is_told_before_the_first_stage(team: Team, clone: Path) -> None:
    """The run uses PostgreSQL without an MLflow server and names a bucket that does not exist."""
    params = (clone / "params.yaml").read_text()
    uri = team.servers.database("mlflow")
    wrong = f"tracking: {{experiment: other, uri: '{uri}', artifacts: 's3://gone/x'}}"
    try:
        text = re.sub(r"tracking: .*", wrong, params)
        (clone / "params.yaml").write_text(re.sub(r"rounds: \d", "rounds: 9", text))
        done = team.run("unset MLFLOW_TRACKING_URI; python -m flows.pipeline", clone)
    finally:
        (clone / "params.yaml").write_text(params)
    assert done.returncode == 2, done.stderr
    assert "s3://gone/x: cannot be written" in done.stderr and "NoSuchBucket" in done.stderr
    assert "Traceback" not in done.stderr and "search@magnitude-0.5 runs" not in done.stderr
