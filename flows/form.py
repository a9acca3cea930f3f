"""What a run is asked for beside params.yaml: in Prefect's form, or on the command line.

A run with other parameters has a workspace of its own, .work/runs/NAME, as an experiment does:
params.yaml stays as it is, DVC's cache and MLflow are shared, and the same form resumes there.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from dvc.exceptions import InvalidArgumentError
from dvc.utils.hydra import apply_overrides, to_hydra_overrides
from dvc.utils.serialize import dump_yaml
from hydra.errors import OverrideParseException
from pydantic import Field

from efficientllava.errors import UserError
from efficientllava.files import value_digest
from efficientllava.parameters import Parameters
from efficientllava.parsing import parse_parameters
from efficientllava.registry import METHODS
from flows.server.workspaces import changed, make_workspace
from tasks.runtime.check import check_device, check_parameters
from tasks.runtime.stage import WORK, read_values

if TYPE_CHECKING:
    Method = str
else:
    Method = Literal[tuple(METHODS)]
Ratio = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0)]

RUNS = WORK / "runs"
OVERRIDES = "overrides"


@dataclass(frozen=True)
class Form:
    """The fields of a run; what is empty is as in params.yaml.

    Attributes:
        seed: of the demo model, the proxy data and the search.
        overrides: `section.key=value`, as `dvc exp run --set-param` takes them.
    """

    methods: Sequence[str] = ()
    ratios: Sequence[float] = ()
    seed: int | None = None
    overrides: Sequence[str] = ()

    @property
    def fields(self) -> dict[str, Any]:
        """What is filled in, by name."""
        fields: dict[str, Any] = {
            "methods": list(self.methods),
            "ratios": list(self.ratios),
            "seed": self.seed,
            OVERRIDES: [line.strip() for line in self.overrides if line.strip()],
        }
        return {name: value for name, value in fields.items() if value not in ([], None)}


def add_fields(parser: argparse.ArgumentParser) -> None:
    """Let a command line take the fields of the form."""
    parser.add_argument("--methods", nargs="+", default=[], help="instead of params.yaml's")
    parser.add_argument("--ratios", nargs="+", type=float, default=[], help="likewise")
    parser.add_argument("--seed", type=int, help="of demo model, proxy data and search")
    parser.add_argument(
        "-S",
        "--set-param",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="as `dvc exp run` takes it; give it repeatedly",
    )


def form_of(given: argparse.Namespace) -> Form:
    """The form of a command line that `add_fields` has read."""
    return Form(given.methods, given.ratios, given.seed, given.set_param)


def workspace(root: Path, form: Form) -> Path:
    """The workspace of a run: `root` where nothing is filled in, else one that is made for it.

    Raises:
        UserError: a field names no parameter, or its value cannot work; nothing is written then.
    """
    values = checked_values(root, form)
    folder = _folder(root, form, values)
    if folder != root:
        make_workspace(root, folder, values)
        _bring_experiments(root / "experiments", folder / "experiments")
    return folder


def folder_of(root: Path, form: Form) -> Path:
    """Where `workspace` makes it.

    Raises:
        UserError: as `workspace`.
    """
    return _folder(root, form, checked_values(root, form))


def _folder(root: Path, form: Form, values: dict[str, Any]) -> Path:
    if not form.fields:
        return root
    named = summary(parse_parameters(values)).replace(" ", "-")
    return root / RUNS / f"{named}-{value_digest(form.fields)[:8]}"


def checked_values(root: Path, form: Form) -> dict[str, Any]:
    """The content of params.yaml with a form's fields in it, checked as every run checks it.

    Raises:
        UserError: as `overridden`; a file, a device or a package is missing.
    """
    values = overridden(read_values(root / "params.yaml"), form, root)
    parameters = parse_parameters(values, OVERRIDES if form.fields else "params.yaml")
    check_parameters(parameters)
    check_device(parameters)
    return values


def overridden(values: Mapping[str, Any], form: Form, root: Path) -> dict[str, Any]:
    """The content of params.yaml with a form's fields in it. Overrides come last.

    Args:
        root: where a file can be written on the way, for DVC to change.

    Raises:
        UserError: a field names no parameter, or its value cannot work.
    """
    fields = form.fields
    changes: dict[str, Any] = {
        name: value for name, value in fields.items() if name in ("methods", "ratios")
    }
    if form.seed is not None:
        changes |= seeded(parse_parameters(values), form.seed)
    result = changed(values, changes)
    if OVERRIDES not in fields:
        return result
    path = root / WORK / "overrides.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    dump_yaml(str(path), result)
    try:
        apply_overrides(path, [_override(text) for text in fields[OVERRIDES]])
        result = read_values(path)
    except InvalidArgumentError as error:
        said = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"DVC cannot apply them ({said})", where=OVERRIDES) from error
    finally:
        path.unlink(missing_ok=True)
    parse_parameters(result, OVERRIDES)
    return result


def _override(text: str) -> str:
    """An override for DVC: also of a parameter that params.yaml leaves out.

    Raises:
        UserError: it is not of the form section.key=value, or has several values.
    """
    try:
        [parsed] = to_hydra_overrides([text])
    except OverrideParseException as error:
        raise UserError(
            f"{text!r} cannot be read",
            where=OVERRIDES,
            remedy="write section.key=value, e.g. search.rounds=5",
        ) from error
    if parsed.is_sweep_override():
        raise UserError(
            f"{text!r} has several values: a run has one",
            where=OVERRIDES,
            remedy="write [a, b] for a list",
        )
    return text if text.startswith(("+", "~")) else f"++{text}"


def seeded(parameters: Parameters, seed: int) -> dict[str, int]:
    """The parameters that a seed sets: proxy data, search, and the demo model."""
    changes = {"proxy.seed": seed, "search.seed": seed}
    if parameters.model.source == "demo":
        changes["model.demo.seed"] = seed
    return changes


def _bring_experiments(source: Path, target: Path) -> None:
    """The report of a run shows the same experiments."""
    shutil.rmtree(target, ignore_errors=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        target.mkdir()


def summary(parameters: Parameters) -> str:
    """A run's name: `efficientllava 0.5 seed 0`."""
    methods = parameters.methods
    named = "+".join(methods) if len(methods) <= 2 else f"{len(methods)} methods"
    ratios = "+".join(f"{ratio:g}" for ratio in parameters.ratios)
    return f"{named} {ratios} seed {parameters.search.seed}"


def tags_of(parameters: Parameters, form: Form) -> set[str]:
    """A run's tags in Prefect: methods, ratios, the seed, and what was overridden."""
    return {
        *(f"method {name}" for name in parameters.methods),
        *(f"ratio {ratio:g}" for ratio in parameters.ratios),
        f"seed {parameters.search.seed}",
        *form.fields.get(OVERRIDES, []),
    }


def record_of(form: Form) -> dict[str, str]:
    """The tag of MLflow's runs that names what was filled in; none where nothing was."""
    return {"pipeline.form": json.dumps(form.fields)} if form.fields else {}
