"""The command `efficientllava prune`: its options, a live bar, one table at the end."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from efficientllava.api import context_of, holds, is_taken, prune, require_data, require_output
from efficientllava.calibration.data import IN_PAIRS, IN_TEXT, calibration_data
from efficientllava.commands.estimate import estimate
from efficientllava.data.proxy import ProxyData
from efficientllava.errors import UserError, library_reads, renaming
from efficientllava.files import read_json
from efficientllava.models.loading import VisionLanguageModel, load
from efficientllava.offload.devices import enough_memory
from efficientllava.parameters import Parameters
from efficientllava.parsing import parse_parameters
from efficientllava.progress import Event, Progress, silent
from efficientllava.pruning.settings import settings
from efficientllava.reading import require_plain_yaml
from efficientllava.terminal import print_rows, shown
from efficientllava.work_folder import require_work

DATA = {"segments": "segments", "segment_length": "length", "pairs": "count", "seed": "seed"}
"""The parameters of section `proxy` that the command takes, as `calibration_data` names them."""
OPTIONS = {
    "params.yaml, ratios": "--sparsity",
    "params.yaml, ": "--set ",
    "parameters, ": "--set ",
    "parameters": "--set",
    "method": "--method",
    "load": "MODEL",
    "device and machine.device": "--device and --set machine.device",
    "device:": "--device:",
    "sparsity": "--sparsity",
    IN_TEXT: "--text",
    IN_PAIRS: "--pairs",
}
"""How errors name the options: see `errors.renaming`."""


LONGEST = 10**9
"""Seconds, as of search.max_seconds."""


class _Values(yaml.SafeLoader):
    """Values as params.yaml has them: 2:4 is a pattern, not a number to the base 60."""

    def pattern_or_number(self, node: yaml.ScalarNode) -> int | str:
        return node.value if ":" in node.value else self.construct_yaml_int(node)


_Values.add_constructor("tag:yaml.org,2002:int", _Values.pattern_or_number)


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
    device: str | None
    max_seconds: float | None
    set: tuple[str, ...]
    family: str = "auto"

    @property
    def values(self) -> dict[str, dict[str, Any]]:
        """`--set section.key=value` and `--max-seconds` as sections of parameters.

        Raises:
            UserError: an option is not of that form.
        """
        values: dict[str, dict[str, Any]] = {}
        for assignment in self.set:
            name, equals, value = assignment.partition("=")
            section, dot, key = name.strip().partition(".")
            if not (equals and dot and section and key):
                raise UserError(
                    f"{assignment!r} is no parameter",
                    where="--set",
                    remedy="write section.key=value, e.g. --set sensitivity.corrections=1",
                )
            require_plain_yaml(value, f"--set {name}")
            with library_reads(f"{assignment!r} is not valid YAML", "--set"):
                values.setdefault(section, {})[key] = _Values(value).get_single_data()
        if self.max_seconds is not None:
            if not 0 < self.max_seconds <= LONGEST:
                problem = f"{self.max_seconds:g} is no number of seconds above 0"
                raise UserError(problem, "--max-seconds", "3600 is an hour")
            search = values.setdefault("search", {})
            if search.setdefault("max_seconds", self.max_seconds) != self.max_seconds:
                raise UserError(
                    f"two limits are given, {self.max_seconds:g} and {search['max_seconds']}",
                    where="--max-seconds and --set search.max_seconds",
                    remedy="give one of them",
                )
        return values

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """The sections that `prune` takes."""
        return {name: section for name, section in self.values.items() if name != "proxy"}

    def opened(
        self, progress: Progress = silent
    ) -> tuple[VisionLanguageModel, ProxyData, Parameters]:
        """The model, the data and all parameters, which are checked before the others are read.

        Raises:
            UserError: see `settings`, `load` and `calibration_data`.
        """
        parameters = settings(self.method, self.sparsity, self.parameters, self.device)
        given = self.values.get("proxy", {})
        for key in given:
            if key not in DATA:
                raise UserError(
                    f"unknown parameter proxy.{key} (known here: {', '.join(DATA)})",
                    where="--set",
                    remedy="give text and pairs with --text and --pairs",
                )
        proxy = parse_parameters({"proxy": given}, where="--set").proxy
        vlm = load(self.model, revision=self.revision, family=self.family)
        drawn = {DATA[key]: getattr(proxy, key) for key in given}
        progress(Event("data", 0, 1))
        data = calibration_data(vlm, text=self.text, pairs=self.pairs, **drawn)
        progress(Event("data", 1, 1))
        require_data(vlm, data, self.method, parameters)
        return vlm, data, parameters


@renaming(OPTIONS)
def run(request: Request, output: Path) -> None:
    """Prune, save to `output`, print the table.

    Raises:
        UserError: see `api.prune`; `output` holds something else.
    """
    work = request.work
    _require_output(request, output)
    require_work(work)
    with shown("prune", sys.stdout) as progress:
        vlm, data, _ = request.opened(progress)
        result = prune(
            vlm,
            data,
            request.method,
            request.sparsity,
            work,
            request.parameters,
            request.device,
            progress,
        )
    if is_taken(output) and not holds(output, result.record):
        raise UserError(
            "holds a model that was pruned with other data or parameters",
            where=f"--output {output}",
            remedy=f"name another folder, or remove it; the new model is in {result.folder}",
        )
    result.save(output)
    print_rows([*result.rows(), ("saved to", str(output))], sys.stdout)


def _require_output(request: Request, output: Path) -> None:
    """Check what can be known of the output folder before hours of work."""
    where, remedy = f"--output {output}", "name another folder, or remove it"
    require_output(output, request.work, where)
    if not is_taken(output):
        return
    if not (output / "pruning.json").is_file():
        raise UserError("the folder exists already and holds something else", where, remedy)
    record = read_json(output / "pruning.json")
    setting = [record.get(name) for name in ("method", "ratio")] if isinstance(record, dict) else []
    if setting != [request.method, request.sparsity]:
        description = "a pruned model" if len(setting) < 2 else f"{setting[0]} at {setting[1]}"
        raise UserError(f"holds another pruned model ({description})", where, remedy)


@renaming(OPTIONS)
def dry(request: Request) -> None:
    """Print what pruning would take. Nothing is pruned, and the work folder stays as it is.

    Raises:
        UserError: as `run` would.
    """
    work = request.work
    require_work(work)
    vlm, data, parameters = request.opened()
    with (
        TemporaryDirectory(prefix="efficientllava-") as temporary,
        enough_memory(parameters.machine.device),
    ):
        context = context_of(vlm, data, request.sparsity, parameters, Path(temporary), silent)
        rows = estimate(request.method, context, work).rows()
    chosen = [("model", vlm.description), ("method", f"{request.method} at {request.sparsity}")]
    print_rows([*chosen, *rows, ("pruned with", data.description)], sys.stdout)
