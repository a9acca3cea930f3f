"""The pipeline on a real language model: `python -m flows.real`, or `make real`.

It runs in a workspace of its own, .work/real, with the parameters of params.real.yaml. The
variable EFFICIENTLLAVA_PTB names a folder with ptb.train.txt and ptb.test.txt (Mikolov's files),
which then take the place of the packaged text; they are read where they lie. The same
command resumes a killed run.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path
from typing import Any

from prefect.states import State

from efficientllava.errors import UserError
from efficientllava.parameters import Parameters
from efficientllava.parsing import parse_parameters
from efficientllava.reading import expanded
from flows.command import run_to_end
from flows.ending import show_comparison
from flows.pipeline import pipeline
from flows.runner.recording import end_process
from flows.runner.stages import USER_ERROR
from flows.server.workspaces import changed, make_workspace
from tasks.runtime.check import check_parameters
from tasks.runtime.stage import WORK, read_parameters, read_values

PARAMETERS = Path("params.real.yaml")
WORKSPACE = WORK / "real"
PTB = "EFFICIENTLLAVA_PTB"
PTB_FILES = ("ptb.train.txt", "ptb.test.txt")


def real_values(
    source: str | None, revision: str | None, environment: Mapping[str, str]
) -> dict[str, Any]:
    """The parameters of params.real.yaml, with another model or another text where one is named.

    Raises:
        UserError: the file is missing or says something that cannot work; the folder of
            EFFICIENTLLAVA_PTB lacks a file.
    """
    changes: dict[str, Any] = {}
    if source:
        changes = {"model.source": source, "model.revision": revision or None}
    if folder := environment.get(PTB):
        for name in PTB_FILES:
            if not (expanded(folder) / name).is_file():
                raise UserError(
                    f"there is no {name}",
                    where=f"{PTB}={folder}",
                    remedy="name the folder of Mikolov's files, or unset the variable",
                )
        changes["proxy.text"] = str(expanded(folder).resolve())
    return changed(read_values(PARAMETERS), changes)


def main() -> int:
    """Make the workspace, run the pipeline in it and show the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", help="another model: a folder or a hub id")
    parser.add_argument("--revision", help="commit of the hub id")
    arguments = parser.parse_args()
    try:
        values = real_values(arguments.source, arguments.revision, os.environ)
        check_parameters(parse_parameters(values))
        make_workspace(Path.cwd(), WORKSPACE, values)
        (WORKSPACE / "experiments").mkdir(exist_ok=True)  # the report reads it; none here
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR

    def start() -> State[Any]:
        with chdir(WORKSPACE):
            return pipeline(return_state=True)

    def show(_: Parameters) -> None:
        with chdir(WORKSPACE):
            # they name the MLflow that the workspace shares with this folder
            show_comparison(read_parameters())
        print(f"These lie in {WORKSPACE}.")

    return run_to_end("the real model", start, show)


if __name__ == "__main__":
    end_process(main())
