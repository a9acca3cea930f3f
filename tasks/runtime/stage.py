"""The frame of all stages: read and check params.yaml, lock the workspace, report errors."""

from __future__ import annotations

import argparse
import os
import shlex
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientllava.errors import UserError, disk_error
from efficientllava.files import DamagedFile, require_sealed
from efficientllava.parameters import Parameters
from efficientllava.parsing import parse_parameters
from efficientllava.progress import Progress
from efficientllava.reading import read_json, read_text, require_plain_yaml
from efficientllava.reading.yaml_text import LARGEST as LARGEST_YAML
from efficientllava.reading.yaml_text import not_yaml
from tasks.runtime.check import check_cell, check_device, check_parameters, check_spelling
from tasks.runtime.cost import measured
from tasks.runtime.environment import DASK_SCHEDULER, use_threads
from tasks.runtime.progress import reporter
from tasks.runtime.workspace import end_with_starter, workspace_lock

if TYPE_CHECKING:
    from efficientllava.allocation.context import Context

PARAMETERS = Path("params.yaml")
ARTIFACTS = Path("artifacts")
WORK = Path(".work")
SETTINGS = ("*.json", "*.jinja", "*.txt", "*.model")
EFFECTIVE = ARTIFACTS / "parameters.json"
"""All parameters, defaults included, as DVC compares them; the stage `parameters` writes it."""


@dataclass(frozen=True)
class Stage:
    """The argument of a stage's function.

    Attributes:
        parameters: all of params.yaml.
        progress: the callback for long work.
        method, ratio: of a stage that exists once per pruned model; empty and 0 otherwise.
    """

    parameters: Parameters
    progress: Progress
    method: str = ""
    ratio: float = 0.0

    @property
    def cell(self) -> str:
        """The name of the pruned model's folders, as dvc.yaml spells it: METHOD-RATIO."""
        return f"{self.method}-{self.ratio:g}"

    def folder(self, stage: str) -> Path:
        """The output folder of a stage of this pruned model: artifacts/STAGE/METHOD-RATIO."""
        return ARTIFACTS / stage / self.cell

    def context(self) -> Context:
        """The inputs of this pruned model's method."""
        from efficientllava.allocation.context import Context

        self.check_settings(ARTIFACTS / "model")
        return Context(
            ARTIFACTS / "model",
            ARTIFACTS / "proxy",
            self.ratio,
            self.parameters,
            WORK,
            self.progress,
            os.environ.get(DASK_SCHEDULER),
        )

    def check_settings(self, folder: Path) -> None:
        """Check that the small files of a checkpoint are as they were written.

        Its weights are checked when they are loaded.

        Raises:
            UserError: one is not.
        """
        require_sealed(folder, SETTINGS)


def read_parameters(path: Path = PARAMETERS) -> Parameters:
    """Read and check params.yaml.

    Raises:
        UserError: as `read_values`, or a parameter cannot work.
    """
    values = read_values(path)
    parameters = parse_parameters(values, where=str(path))
    check_spelling(values.get("ratios", []))
    check_parameters(parameters)
    if os.environ.get("DVC_STAGE", "parameters") == "parameters":
        _tell_defaults(set(values), parameters, path)
    return parameters


def _tell_defaults(given: set[str], parameters: Parameters, path: Path) -> None:
    """State what is run for the sections that params.yaml leaves out, before it is run."""
    left_out = [name for name in Parameters.model_fields if name not in given]
    if left_out:
        asked = parameters.evaluation.questions
        if asked is None and parameters.evaluation.compared == "demo":
            asked = parameters.model.demo.test_questions
        print(
            f"note: {path} leaves out {', '.join(left_out)}; with their defaults this runs model "
            f"{parameters.model.source}, methods {', '.join(parameters.methods)} at ratios "
            f"{', '.join(map(str, parameters.ratios))}, "
            f"{'all' if asked is None else asked} questions of {parameters.evaluation.compared}",
            file=sys.stderr,
        )


def read_values(path: Path = PARAMETERS) -> Any:
    """The content of params.yaml, read as DVC reads it (1e-3 is a number).

    Raises:
        UserError: the file is missing or is no YAML.
    """
    from dvc.utils.serialize import parse_yaml

    if not path.exists():
        raise UserError("no such file", where=str(path), remedy="start in the clone's folder")
    text = read_text(path, LARGEST_YAML)
    require_plain_yaml(text, str(path))
    try:
        return _plain(parse_yaml(text, str(path)))
    except Exception as error:  # beside the parser's own kinds those of dates and numbers
        raise not_yaml(error.__cause__ or error, str(path)) from error


def _plain(value: Any) -> Any:
    """The reader's own number and mapping types as Python's."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def run_stage(work: Callable[[Stage], None], per_model: bool = False) -> None:
    """Run a stage as this process: exit 0, or 2 with a message for an error that the user can fix.

    Args:
        work: the stage; imports heavy modules itself, so that bad parameters are reported at once.
        per_model: the stage is for one model: that of `--method` and `--ratio`, or the cell of
            the matrix that DVC runs.
    """
    parser = argparse.ArgumentParser(description=sys.modules[work.__module__].__doc__)
    if per_model:
        parser.add_argument("--method")
        parser.add_argument("--ratio", type=float)
    sys.exit(guarded(lambda: _run(work, parser.parse_args())))


def _run(work: Callable[[Stage], None], arguments: argparse.Namespace) -> None:
    name = work.__module__.rpartition(".")[2]
    if name == "__main__":
        name = Path(sys.argv[0]).stem
    end_with_starter()
    parameters = read_parameters()
    chosen = _model(parameters, arguments) if "method" in arguments else {}
    _check_effective(parameters, name)
    use_threads(parameters.machine.threads)
    check_device(parameters)
    label = " ".join([name, *map(str, chosen.values())])
    name = os.environ.get("DVC_STAGE", label)
    with workspace_lock(f"stage {label}"), measured(name), reporter(label) as progress:
        work(Stage(parameters, progress, **chosen))


def _model(parameters: Parameters, arguments: argparse.Namespace) -> dict[str, Any]:
    """Method and ratio: as given, or those of the cell in the name of the stage that DVC runs.

    DVC gives a stage's command to a shell, so no parameter's value may stand in it.

    Raises:
        UserError: the cell is none of params.yaml's, or the method and the ratio cannot be.
    """
    if arguments.method is not None and arguments.ratio is not None:
        check_cell(parameters, arguments.method, arguments.ratio)
        return {"method": arguments.method, "ratio": arguments.ratio}
    cell = os.environ.get("DVC_STAGE", "").rpartition("@")[2]
    if arguments.method is None and arguments.ratio is None:
        for method, ratio in product(parameters.methods, parameters.ratios):
            if cell == f"{method}-{ratio:g}":
                return {"method": method, "ratio": ratio}
    raise UserError(
        f"{cell!r} is no model of params.yaml" if cell else "the model is not named",
        where="params.yaml, methods and ratios",
        remedy="give --method and --ratio, or start the stage by `dvc repro STAGE@METHOD-RATIO`",
    )


def _check_effective(parameters: Parameters, stage: str) -> None:
    """Under DVC, params.yaml must agree with the parameters that DVC records in dvc.lock.

    Raises:
        UserError: params.yaml has been changed since the stage `parameters` ran.
    """
    if "DVC_STAGE" not in os.environ or stage == "parameters" or not EFFECTIVE.is_file():
        return
    if read_json(EFFECTIVE) != parameters.model_dump(mode="json"):
        raise UserError(
            "has changed since the stage `parameters` read it",
            where=str(PARAMETERS),
            remedy="run all stages: `make demo` or `make repro`",
        )


def guarded(run: Callable[[], None]) -> int:
    """Run; whatever fails, the last finished outputs are there again afterwards.

    Returns:
        The exit code: 0; 2 with a message on stderr for an error that the user can fix; 130 when
        interrupted. Anything else is a defect and is raised.
    """
    try:
        run()
        return 0
    except BaseException as error:
        kept = restore_outputs()
        if (message := told(error)) is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        if kept:
            print(f"  kept as it was: {', '.join(kept)}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 2


def told(error: BaseException) -> str | None:
    """The message for the user; None for a defect of this program."""
    if isinstance(error, DamagedFile) and ARTIFACTS in error.path.parents:
        # DVC's copy may be the same file: both have to go before the stage makes it again
        path = shlex.quote(str(error.path))
        remedy = f"`find .dvc/cache -samefile {path} -delete; rm {path}`, and start again"
        return str(UserError(error.what, error.where, remedy))
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted\n  -> start again: it resumes"
    # a library that writes past efficientllava.files
    if (about_disk := disk_error(error)) is not None:
        return str(about_disk)
    return None


def restore_outputs() -> list[str]:
    """Bring back the outputs that DVC removed before it ran this stage, from its cache.

    A failed stage so leaves the workspace as it was. Returns the paths that were brought back;
    nothing outside of DVC, or when the stage never finished before.
    """
    if "DVC_STAGE" not in os.environ:
        return []
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    restored = []
    try:
        with Repo() as repo:
            for output in repo.stage.load_one(name=os.environ["DVC_STAGE"]).outs:
                # half of a new version is no output: the last finished one takes its place
                gone = not output.exists
                if output.hash_info and (gone or output.changed_checksum()):
                    output.checkout(force=True)
                    restored.append(str(output))
    except (DvcException, OSError, sqlite3.Error):
        pass  # on the way out of an error that matters more
    return restored
