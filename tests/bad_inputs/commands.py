"""The real commands in forks of one process, which has imported what they import."""

from __future__ import annotations

import importlib
import os
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.limited import Ended, limited

IMPORTED = (
    "torch",
    "transformers",
    "dvc.utils.serialize",
    "efficientllava.cli",
    "efficientllava.api",
    "efficientllava.benchmarks.score_command",
    "efficientllava.calibration.data",
    "efficientllava.commands.pack",
    "efficientllava.commands.prune",
    "efficientllava.commands.verify",
    "efficientllava.export.assistant",
    "efficientllava.export.reference",
    "efficientllava.models.loading",
    "efficientllava.registry",
    "onnxruntime",
)
"""What the commands import; a fork of this process has it."""
CONSOLE = "efficientllava"


@dataclass(frozen=True)
class Case:
    """A bad input.

    Attributes:
        name: says what is bad.
        command: words after `python -m`, or after `efficientllava` where that is the first one.
        words: what the message names: the file or the parameter, and what is wrong.
    """

    name: str
    command: tuple[str, ...]
    words: tuple[str, ...]


def prepare(checkpoint: Path | None = None) -> None:
    """Import what the commands import, once; with a checkpoint, what transformers loads for it."""
    for name in IMPORTED:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    if checkpoint is not None:
        from efficientllava.models.checkpoint import load_model, load_processor

        load_model(checkpoint)
        load_processor(checkpoint)


def run(command: tuple[str, ...], folder: Path) -> Ended:
    """Run a command in a folder, within the limits of time and memory."""
    os.environ.setdefault("COLUMNS", "200")  # rich wraps messages otherwise

    def called() -> None:
        sys.argv = list(command)
        if command[0] == CONSOLE:
            from efficientllava.cli import app

            app()
        else:
            runpy.run_module(command[0], run_name="__main__", alter_sys=True)

    return limited(called, folder=folder)


def fault(case: Case, ended: Ended) -> str:
    """Why an ending is no good answer to a bad input; empty where it is one."""
    if ended.limit:
        return f"passed the limit of {ended.limit}"
    if "Traceback" in ended.output:
        return f"traceback: {ended.last_line}"
    if ended.status != 2:
        return f"exit status {ended.status}: {ended.last_line or 'nothing printed'}"
    said = " ".join(ended.output.split())
    if missing := [word for word in case.words if word not in said]:
        return f"does not say {missing}: {said[-300:]}"
    return ""
