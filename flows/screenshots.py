"""Pictures of what MLflow and Prefect show of the last run: `python -m flows.screenshots`.

Starts both servers on the loopback interface over this workspace's records, opens their pages
in a headless Chromium and writes docs/screenshots/*.png. Needs chromium and chromedriver.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from efficientllava.errors import UserError
from efficientllava.parameters import TrackingParameters
from flows.browser import Page, browser, wait_for_server
from flows.runner.guard import guarded, stop
from flows.runner.loopback import request
from flows.server.server import LOOPBACK, free_port
from flows.tracking.champion import CHAMPION
from flows.tracking.tracking import tracking_uri
from tasks.runtime.stage import read_parameters

TARGET = Path("docs/screenshots")


@contextmanager
def started(command: list[str], url: str, **environment: str) -> Iterator[None]:
    """A server of the time of the block."""
    process = guarded(
        [sys.executable, "-m", *command],
        {**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_server(url)
        yield
    finally:
        stop(process)


def versions(tracking: TrackingParameters) -> dict[str, Any]:
    """The last version of every model, by `METHOD-RATIO`.

    Raises:
        UserError: there are none.
    """
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri(tracking, Path.cwd()))
    found = client.search_model_versions(
        f"name = '{tracking.registered_model}'", order_by=["version_number ASC"]
    )
    if not found:
        raise UserError("no model is registered", where="MLflow", remedy="make demo")
    return {f"{v.tags['method']}-{v.tags['ratio']}": v for v in found}


def mlflow_pages(page: Page, address: str, tracking: TrackingParameters, experiment: str) -> None:
    """The runs side by side, the versions side by side, and the registered model."""
    shown = versions(tracking)
    page.open(address)
    page.wait_for("Experiments")
    close_assistant(page)
    page.open(f"{address}/#/models/{quote(tracking.registered_model)}")
    page.wait_for(CHAMPION)
    page.save(TARGET / "mlflow_model.png")

    runs = quote(json.dumps([version.run_id for version in shown.values()]))
    page.open(f"{address}/#/compare-runs?runs={runs}&experiments={quote(json.dumps([experiment]))}")
    page.wait_for("Comparing", "Parameters", "Metrics", next(iter(shown)).partition("-")[0])
    time.sleep(3)  # the plot is drawn after the words
    page.save(TARGET / "mlflow_runs.png")
    show_section(page, "Metrics")
    page.save(TARGET / "mlflow_runs_metrics.png")

    by_version = quote(json.dumps({str(v.version): v.run_id for v in shown.values()}))
    name = quote(json.dumps(quote(tracking.registered_model)))
    page.open(f"{address}/#/compare-model-versions?name={name}&runs={by_version}")
    page.wait_for("Comparing", "Metrics")
    time.sleep(3)
    page.save(TARGET / "mlflow_versions.png")
    show_section(page, "Metrics")
    page.save(TARGET / "mlflow_versions_metrics.png")


def close_assistant(page: Page) -> None:
    """Close the panel that MLflow opens at the first visit; it takes a quarter of the window."""
    time.sleep(3)
    page.script(
        """
        const close = document.querySelector('[data-component-id$="chat_panel.close"]');
        if (close) close.click();
        """
    )
    time.sleep(1)


def show_section(page: Page, title: str) -> None:
    """Scroll to the heading of that name."""
    page.script(
        """
        const all = [...document.querySelectorAll('h1,h2,h3,h4,span,div,button')];
        const found = all.filter(e => e.textContent.trim() === arguments[0]);
        if (found.length) found[found.length - 1].scrollIntoView({block: 'start'});
        """,
        title,
    )
    time.sleep(2)


def last_flow_run(address: str) -> Mapping[str, Any]:
    """The run of the pipeline that did most of the work lately: cached ones show no rounds."""
    query = {"sort": "START_TIME_DESC", "limit": 20}
    query["flow_runs"] = {"state": {"type": {"any_": ["COMPLETED"]}}}  # type: ignore[assignment]
    runs = request("POST", f"{address}/api/flow_runs/filter", json=query, timeout=30).json()
    if not runs:
        raise UserError("no run was completed", where="Prefect", remedy="make demo")
    return max(runs, key=lambda run: run["total_run_time"])


def prefect_pages(page: Page, address: str) -> None:
    """The run's graph of stages and rounds, its tasks and its artifacts."""
    run = last_flow_run(address)
    page.open(f"{address}/runs/flow-run/{run['id']}")
    page.wait_for(run["name"], "Task Runs")
    time.sleep(6)  # the graph is laid out
    page.save(TARGET / "prefect_run.png")
    page.script(
        """
        const tabs = [...document.querySelectorAll('[role=tab], .p-tab, button')];
        const tab = tabs.find(e => e.textContent.trim() === 'Task Runs');
        if (tab) tab.click();
        """
    )
    page.wait_for("promote")
    page.script(
        """
        const box = document.querySelector('input[placeholder="Search by run name"]');
        if (!box) return;
        const set = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set;
        set.call(box, 'search');
        box.dispatchEvent(new Event('input', {bubbles: true}));
        """
    )
    time.sleep(5)  # the list is filtered
    page.wait_for(" round ")
    page.save(TARGET / "prefect_tasks.png")


def main() -> int:
    """Take all pictures."""
    try:
        tracking = read_parameters().tracking
        uri = tracking_uri(tracking, Path.cwd())
        from mlflow import MlflowClient

        found = MlflowClient(uri).get_experiment_by_name(tracking.experiment)
        if found is None:
            raise UserError("no such experiment", where=tracking.experiment, remedy="make demo")
        port = str(free_port())
        address = f"http://{LOOPBACK}:{port}"
        server = ["mlflow", "server", "--host", LOOPBACK, "--port", port, "--workers", "1"]
        quick = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (
            browser() as page,
            started([*server, "--backend-store-uri", uri], f"{address}/health", **quick),
        ):
            mlflow_pages(page, address, tracking, found.experiment_id)
        port = str(free_port())
        address = f"http://{LOOPBACK}:{port}"
        server = ["prefect", "server", "start", "--host", LOOPBACK, "--port", port]
        with (
            browser() as page,
            started(server, f"{address}/api/health", PREFECT_UI_API_URL="/api"),
        ):
            prefect_pages(page, address)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in sorted(TARGET.glob("*.png")):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
