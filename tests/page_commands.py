"""The commands that a page of the documentation shows, and the tests that run them."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
SHARED, CLUSTER = "tests/flows/test_shared.py", "tests/flows/test_cluster.py"
TEAM_PAGE = f"{SHARED}::test_every_command_of_the_team_page_runs"
TRIAL = f"{SHARED}::test_a_trial_leaves_the_better_champion_and_a_rollback_restores_it"
SERVERS_PAGE = f"{SHARED}::test_the_servers_page_s_commands_start_what_a_run_uses"
DASK = f"{CLUSTER}::test_the_team_page_s_workers_score"
RESULTS = "## Results for all (DVC)"
"""The section of the team page whose commands one test runs in their order."""

RUN: dict[str, dict[str, str]] = {
    "team.md": {
        "python -m flows.pipeline": TRIAL,
        "dvc repro": TRIAL,
        "prefect server start --host 127.0.0.1 &": "tests/flows/test_serve.py::test_a_worker_fires",
        "export PREFECT_API_URL=http://127.0.0.1:4200/api": SERVERS_PAGE,
        "dask scheduler --host 10.0.0.1 --port 8786 --no-dashboard": DASK,
        "dask worker tcp://10.0.0.1:8786 --nworkers 2 --nthreads 1 --no-dashboard": DASK,
    },
    "servers.md": {
        "deploy/make_secrets": "tests/test_containers.py::test_secrets_are_made_once",
        "export PGPASSWORD=... AWS_ENDPOINT_URL=https://s3.example.org AWS_ACCESS_KEY_ID=... "
        "AWS_SECRET_ACCESS_KEY=...": SERVERS_PAGE,
        "mlflow server --host 127.0.0.1 --port 5000 --workers 1 --backend-store-uri "
        "postgresql://team@db/mlflow --artifacts-destination s3://team/mlflow": SERVERS_PAGE,
        "PREFECT_SERVER_DATABASE_CONNECTION_URL=postgresql+asyncpg://team@db/prefect "
        "prefect server start": SERVERS_PAGE,
        "export MLFLOW_TRACKING_URI=http://127.0.0.1:5000 "
        "PREFECT_API_URL=http://127.0.0.1:4200/api": SERVERS_PAGE,
        "python -m flows.pipeline": SERVERS_PAGE,
    },
}
"""Page -> command -> the test that runs it, beside those of the section RESULTS."""

NOT_RUN = {
    "pip install 'efficientllava[pipeline,servers]'": "tests need no network",
    "docker compose up --build --detach --wait": "no container engine where tests run; "
    "test_shared.py runs the commands of the services, test_containers.py checks the files",
}
"""Command -> why no test runs it."""


def commands(page: str, section: str = "") -> list[str]:
    """The commands of a page's shell blocks in order, without comments.

    A line that ends with a backslash goes on.

    Args:
        section: a heading of the second level; the whole page if empty.
    """
    text = (DOCS / page).read_text(encoding="utf-8")
    if section:
        text = text.partition(f"{section}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.DOTALL)
    lines = re.sub(r"\\\n\s*", "", "".join(blocks)).splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.strip()]
