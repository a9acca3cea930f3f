"""The commands `compare`, `promote`, `rollback` and `fetch`: versions that MLflow holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer()

Uri = Annotated[
    str | None, typer.Option(help="MLflow; that of params.yaml here, or MLFLOW_TRACKING_URI")
]
Name = Annotated[str | None, typer.Option(help="registered model; that of params.yaml here")]
Version = Annotated[str, typer.Argument(help="a number, an alias such as champion, or models:/...")]


@commands.command()
def compare(version: Version, other: Version, uri: Uri = None, name: Name = None) -> None:
    """Compare two registered versions: parameters, summaries, answers, policies."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from efficientllava.report.terminal import print_whole
    from efficientllava.versions.compare import read_side, sections
    from efficientllava.versions.connection import connected

    with connected(uri, name) as mlflow:
        sides = [read_side(mlflow.client, mlflow.version(named)) for named in (version, other)]
    console = Console()
    for section in sections(*sides):
        console.print(f"\n{section.title}", style="bold", highlight=False, markup=False)
        if not section.lines:
            console.print("none", highlight=False)
            continue
        table = Table(*section.headings, box=box.SIMPLE_HEAD, show_edge=False)
        for line in section.lines:
            table.add_row(*(cell.replace("[", r"\[") for cell in line))
        print_whole(console, table)


@commands.command()
def promote(version: Version, uri: Uri = None, name: Name = None) -> None:
    """Make a version champion that passed every check of the last pipeline run."""
    from efficientllava.versions.aliases import Aliases
    from efficientllava.versions.connection import connected

    with connected(uri, name) as mlflow:
        found = mlflow.version(version)
        former = Aliases(mlflow.client, found.name).promote(str(found.version))
    typer.echo(f"champion of {found.name}: version {found.version} (before: {former})")


@commands.command()
def rollback(uri: Uri = None, name: Name = None) -> None:
    """Make the previous champion champion again; a rolled back version never comes by itself."""
    from efficientllava.versions.aliases import Aliases
    from efficientllava.versions.connection import connected

    with connected(uri, name) as mlflow:
        restored, present = Aliases(mlflow.client, mlflow.name).roll_back()
    typer.echo(f"champion of {mlflow.name}: version {restored}, rolled back from {present}")


@commands.command()
def fetch(
    version: Version,
    out: Annotated[Path, typer.Argument(help="output folder; it must not exist")],
    uri: Uri = None,
    name: Name = None,
) -> None:
    """Write the weights of a registered version, by DVC's cache or remote of this clone."""
    from efficientllava.versions.connection import connected
    from efficientllava.versions.contents import fetch_into

    with connected(uri, name) as mlflow:
        found = mlflow.version(version)
        address = mlflow.client.get_model_version_download_uri(found.name, found.version)
        files = fetch_into(address, out, mlflow.uri)
    typer.echo(f"{out}: version {found.version} of {found.name}, {files} files from {address}")
