"""Where unfinished work is kept: it counts again only for the same code, torch and machine."""

from __future__ import annotations

import hashlib
from pathlib import Path

import efficientllava
from efficientllava.parameters import MachineParameters

DECISIVE = (
    "data",
    "models",
    "offload",
    "kernels",
    "calibration",
    "database",
    "allocation",
    "pruning",
)
"""Folders whose code decides the bytes of a database, a search or a pruned model."""


def code_digest() -> str:
    """sha256 of torch's version and of all code that decides results."""
    import torch

    digest = hashlib.sha256(f"{torch.__version__}\n".encode())
    library = Path(efficientllava.__file__).parent
    for folder in DECISIVE:
        for path in sorted((library / folder).rglob("*.py")):
            digest.update(path.relative_to(library).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def unfinished(work: Path, name: str, machine: MachineParameters) -> Path:
    """The folder below `work` for unfinished work of a kind: one for each code, torch, threads
    and device."""
    from efficientllava.offload.devices import describe, require_device

    device = describe(require_device(machine.device))
    key = f"{code_digest()} {machine.threads} {device}"
    return work / name / hashlib.sha256(key.encode()).hexdigest()[:16]
