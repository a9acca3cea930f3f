"""Addresses of pages: the table of runs with its summaries, the champion, Prefect's runs."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, urlsplit

from prefect.settings import Settings

from efficientllava.errors import without_users
from efficientllava.parameters import TrackingParameters
from efficientllava.versions.connection import tracking_uri
from flows.tracking.summaries import VIEW

RUNS, DECISION, VERSIONS = "runs compared", "decision", "versions"
STAGES = "stages and rounds"
KINDS = (RUNS, DECISION, VERSIONS, STAGES)
SHOW = "make ui"
"""The command that shows the pages of a workspace without servers of its own."""


def is_server(uri: str) -> bool:
    """Whether MLflow's address is that of a server, which has pages by itself."""
    return urlsplit(uri).scheme in ("http", "https")


def runs_page(address: str, experiment: str) -> str:
    """The table of an experiment's finished runs, whose columns are the summaries."""
    return f"{_without(address)}/#/experiments/{experiment}/runs?viewStateShareKey={VIEW}"


def decision_page(address: str, experiment: str) -> str:
    """The same runs side by side: summaries first, then parameters that differ, then charts."""
    return f"{runs_page(address, experiment)}&compareRunsMode=CHART"


def model_page(address: str, name: str) -> str:
    """The versions of a registered model with their aliases."""
    return f"{_without(address)}/#/models/{quote(name, safe='')}"


def prefect_page(api: str) -> str:
    """The runs on Prefect's server."""
    return f"{api.rstrip('/').removesuffix('/api')}/runs"


def pages(tracking: TrackingParameters, root: Path, experiment: str) -> list[tuple[str, str]]:
    """(what, address) of the pages of servers that run on their own; none for those that do not."""
    uri, found = tracking_uri(tracking, root), []
    if is_server(uri):
        found.append((RUNS, runs_page(uri, experiment)))
        found.append((DECISION, decision_page(uri, experiment)))
        found.append((VERSIONS, model_page(uri, tracking.registered_model)))
    configured = Settings()  # not those of a server that lasts as long as the run
    if configured.api.url:
        ui = configured.ui_url
        found.append((STAGES, f"{ui.rstrip('/')}/runs" if ui else prefect_page(configured.api.url)))
    return found


def _without(address: str) -> str:
    return without_users(address).replace("***@", "").rstrip("/")
