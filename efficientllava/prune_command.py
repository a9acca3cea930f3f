"""The command `efficientllava prune`: its options, a live bar, one table at the end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from efficientllava.api import context_of, held, holds, prune, settings
from efficientllava.calibration.data import calibration_data
from efficientllava.data.proxy import ProxyData
from efficientllava.errors import UserError
from efficientllava.estimate import estimate
from efficientllava.files import read_json
from efficientllava.models.loading import VisionLanguageModel, load
from efficientllava.progress import silent
from efficientllava.terminal import shown


@dataclass(frozen=True)
class Request:
    """The options of the command, as they were given."""

    model: str
    revision: str | None
    method: str
    sparsity: float
    text: str | None
    pairs: str | None
    work: Path
    device: str
    max_seconds: float | None
    set: tuple[str, ...]

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """`--set section.key=value` and `--max-seconds` as sections of parameters.

        Raises:
            UserError: an option is not of that form.
        """
        values: dict[str, dict[str, Any]] = {}
        for each in self.set:
            name, equals, value = each.partition("=")
            section, dot, key = name.partition(".")
            if not (equals and dot and section and key):
                raise UserError(
                    f"{each!r} is no parameter",
                    where="--set",
                    remedy="write section.key=value, e.g. --set search.rounds=5",
                )
            try:
                values.setdefault(section, {})[key] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise UserError(f"{each!r} is not valid YAML", where="--set") from error
        if self.max_seconds is not None:
            values.setdefault("search", {})["max_seconds"] = self.max_seconds
        return values

    def opened(self) -> tuple[VisionLanguageModel, ProxyData]:
        """The model and the data; parameters are checked before either is read."""
        vlm = load(self.model, revision=self.revision)
        settings(vlm, self.method, self.sparsity, self.parameters, self.device)
        return vlm, calibration_data(vlm, text=self.text, pairs=self.pairs)


def run(request: Request, output: Path) -> None:
    """Prune, save to `output`, print the table.

    Raises:
        UserError: see `api.prune`; `output` holds something else.
    """
    if output.exists() and not (output / "pruning.json").is_file():
        raise UserError(
            "the folder exists already and holds something else",
            where=f"--output {output}",
            remedy="name another folder, or remove it",
        )
    vlm, data = request.opened()
    with shown("prune", sys.stdout) as progress:
        result = prune(
            vlm,
            data,
            request.method,
            request.sparsity,
            request.work,
            request.parameters,
            request.device,
            progress,
        )
    if output.exists() and not holds(output, result.record):
        record = read_json(output / "pruning.json")
        raise UserError(
            f"holds another pruned model ({record['method']} at {record['ratio']:g})",
            where=f"--output {output}",
            remedy=f"name another folder, or remove it; the new model is in {result.folder}",
        )
    result.save(output)
    Console().print(_table([*result.rows(), ("saved to", str(output))]))


def dry(request: Request) -> None:
    """Print what pruning would take; nothing is pruned.

    Raises:
        UserError: as `run` would.
    """
    vlm, data = request.opened()
    parameters = settings(vlm, request.method, request.sparsity, request.parameters, request.device)
    with held(request.work.expanduser()):
        context = context_of(
            vlm, data, request.sparsity, parameters, request.work.expanduser(), silent
        )
        rows = estimate(request.method, context).rows()
    told = [("model", vlm.description), ("method", f"{request.method} at {request.sparsity:g}")]
    Console().print(_table([*told, *rows, ("pruned with", data.description)]))


def _table(rows: Sequence[tuple[str, str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
