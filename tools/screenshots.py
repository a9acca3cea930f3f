"""Pictures of MLflow's and Prefect's pages of the last run: `python -m tools.screenshots`.

Opens the pages of both servers, over this workspace's records, in a headless Chromium and writes
docs/screenshots/*.png. Needs Debian's chromium.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from playwright.sync_api import Error, Page, sync_playwright

from efficientllava.errors import UserError
from efficientllava.parameters import TrackingParameters
from efficientllava.versions.aliases import CHAMPION
from efficientllava.versions.connection import tracking_uri
from flows.runner.guard import guarded, stop
from flows.runner.loopback import request
from flows.server.pages import decision_page, runs_page
from flows.server.server import LOOPBACK, free_port
from tasks.runtime.stage import read_parameters

TARGET = Path("docs/screenshots")
PATIENCE = 300  # seconds until a server answers or a page has its content


@contextmanager
def browser() -> Iterator[Page]:
    """Start Chromium and yield its page.

    Raises:
        UserError: it is not installed, or a page lacks its content.
    """
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        remedy = "apt-get install chromium"
        raise UserError("chromium is not installed", where="screenshots", remedy=remedy)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium)
        page = opened.new_page(viewport={"width": 1800, "height": 1300}, bypass_csp=True)
        page.set_default_timeout(1000 * PATIENCE)
        try:
            yield page
        except Error as error:
            raise UserError(str(error).partition("\n")[0], where=page.url) from error
        finally:
            opened.close()


def wait_for(page: Page, *words: str) -> None:
    """Wait until the page shows all of the words."""
    page.wait_for_function(
        "words => words.every(word => document.body.innerText.includes(word))", arg=list(words)
    )


def save(page: Page, name: str, seconds: float) -> None:
    """Write the window as docs/screenshots/NAME.png, some seconds from now."""
    page.wait_for_timeout(1000 * seconds)  # plots and graphs are drawn after the words
    page.screenshot(path=TARGET / f"{name}.png")


@contextmanager
def server(command: list[str], health: str, **environment: str) -> Iterator[str]:
    """Start a server for the time of the block and yield its address.

    Args:
        command: of a module; host and port are added.
        health: path that answers when the server is ready.

    Raises:
        UserError: it does not answer in time.
    """
    port = str(free_port())
    address = f"http://{LOOPBACK}:{port}"
    process = guarded(
        [sys.executable, "-m", *command, "--host", LOOPBACK, "--port", port],
        {**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + PATIENCE
        while not _answers(address + health):
            if time.monotonic() > end:
                raise UserError(f"no answer within {PATIENCE} s", where=address)
            time.sleep(0.3)
        yield address
    finally:
        stop(process)


def _answers(url: str) -> bool:
    try:
        return request("GET", url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def versions(tracking: TrackingParameters, uri: str) -> dict[str, Any]:
    """The last version of every model, by `METHOD-RATIO`.

    Raises:
        UserError: there are none.
    """
    from mlflow import MlflowClient

    models = MlflowClient(uri).search_model_versions(
        f"name = '{tracking.registered_model}'", order_by=["version_number ASC"]
    )
    if not models:
        raise UserError("no model is registered", where="MLflow", remedy="make demo")
    return {f"{v.tags['method']}-{v.tags['ratio']}": v for v in models}


def mlflow_pages(page: Page, address: str, tracking: TrackingParameters, uri: str) -> None:
    """The registered model and its champion, the runs by their summaries, comparisons."""
    from mlflow import MlflowClient

    shown = versions(tracking, uri)
    page.goto(address)
    wait_for(page, "Experiments")
    page.wait_for_timeout(3000)
    # the panel that opens at the first visit takes a quarter of the window
    if (close := page.locator('[data-component-id$="chat_panel.close"]')).count():
        close.first.click()
    page.goto(f"{address}/#/models/{quote(tracking.registered_model)}")
    wait_for(page, CHAMPION)
    save(page, "mlflow_model", 1)
    champion = MlflowClient(uri).get_model_version_by_alias(tracking.registered_model, CHAMPION)
    name = quote(tracking.registered_model)
    page.goto(f"{address}/#/models/{name}/versions/{champion.version}")
    wait_for(page, "weights in artifacts/pruned")
    save(page, "mlflow_version", 1)

    names = [version.run_id for version in shown.values()]
    experiment = MlflowClient(uri).get_run(names[0]).info.experiment_id
    page.goto(runs_page(address, experiment))
    wait_for(page, "matching runs", next(iter(shown)).partition("-")[0])
    save(page, "mlflow_summary", 3)
    page.goto(decision_page(address, experiment))
    wait_for(page, "Metrics, then parameters", "summary/accuracy_percent")
    save(page, "mlflow_decision", 6)

    by_version = quote(json.dumps({str(v.version): v.run_id for v in shown.values()}))
    name = quote(json.dumps(quote(tracking.registered_model)))
    page.goto(f"{address}/#/compare-model-versions?name={name}&runs={by_version}")
    wait_for(page, "Comparing", "Metrics")
    save(page, "mlflow_versions", 3)


def prefect_pages(page: Page, address: str) -> None:
    """The graph of stages and rounds of the run that did most of the work lately, and its tasks.

    Raises:
        UserError: no run was completed.
    """
    query = {"sort": "START_TIME_DESC", "limit": 20}
    query["flow_runs"] = {"state": {"type": {"any_": ["COMPLETED"]}}}  # type: ignore[assignment]
    runs = request("POST", f"{address}/api/flow_runs/filter", json=query, timeout=30).json()
    if not runs:
        raise UserError("no run was completed", where="Prefect", remedy="make demo")
    run = max(runs, key=lambda run: run["total_run_time"])  # cached ones show no rounds
    page.goto(f"{address}/runs/flow-run/{run['id']}")
    wait_for(page, run["name"], "Task Runs")
    save(page, "prefect_run", 6)
    page.get_by_text("Task Runs", exact=True).first.click()
    wait_for(page, "promote")
    page.get_by_placeholder("Search by run name").first.fill("search")
    page.wait_for_timeout(5000)  # the list is filtered
    wait_for(page, " round ")
    save(page, "prefect_tasks", 0)


def prefect_form(page: Page) -> None:
    """The form of a deployment that `flows.serve` makes, on a server without other records."""
    command = ["prefect", "server", "start"]
    with (
        tempfile.TemporaryDirectory() as home,
        server(command, "/api/health", PREFECT_HOME=home, PREFECT_UI_API_URL="/api") as address,
    ):
        served = guarded(
            [sys.executable, "-m", "flows.serve", "--name", "on-demand"],
            {**os.environ, "PREFECT_HOME": home, "PREFECT_API_URL": f"{address}/api"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            page.goto(f"{address}/deployments/deployment/{_deployment(address)}/run")
            wait_for(page, "methods", "ratios", "seed", "overrides", "until")
            save(page, "prefect_form", 3)
        finally:
            stop(served)


def _deployment(address: str) -> str:
    """The only deployment of a server, once it is there.

    Raises:
        UserError: it does not come in time.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        url = f"{address}/api/deployments/filter"
        if found := request("POST", url, json={}, timeout=30).json():
            return str(found[0]["id"])
        time.sleep(0.3)
    raise UserError(f"no deployment within {PATIENCE} s", where=address)


def main() -> int:
    """Take all pictures; 2 with a message where something is missing."""
    try:
        tracking = read_parameters().tracking
        uri = tracking_uri(tracking, Path.cwd())
        with browser() as page:
            mlflow = ["mlflow", "server", "--workers", "1", "--backend-store-uri", uri]
            with server(mlflow, "/health", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false") as address:
                mlflow_pages(page, address, tracking, uri)
            prefect = ["prefect", "server", "start"]
            with server(prefect, "/api/health", PREFECT_UI_API_URL="/api") as address:
                prefect_pages(page, address)
            prefect_form(page)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in sorted(TARGET.glob("*.png")):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
