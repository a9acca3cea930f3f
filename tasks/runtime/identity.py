"""Under which name unfinished work is kept: it counts again only for the same inputs and code."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tasks.runtime.stage import WORK, Stage

# folders whose code decides what a database or a search comes to
DECISIVE = ("models", "data", "pruning", "search")


def unfinished(name: str, stage: Stage) -> Path:
    """The folder for a stage's unfinished work, one for each code, torch, threads, device."""
    import torch

    import efficientllava
    from efficientllava.offload.devices import describe, require_device

    machine = stage.parameters.machine
    device = describe(require_device(machine.device))
    digest = hashlib.sha256(f"{torch.__version__} {machine.threads} {device}\n".encode())
    library = Path(efficientllava.__file__).parent
    for folder in DECISIVE:
        for path in sorted((library / folder).rglob("*.py")):
            digest.update(path.relative_to(library).as_posix().encode())
            digest.update(path.read_bytes())
    return WORK / name / digest.hexdigest()[:16]
