"""Our checkpoints in lmms-eval's registry: `python -m lmms_eval --model efficientllava`."""

from __future__ import annotations

from typing import Any

NAME = "efficientllava"
MODULE = "efficientllava.benchmarks.engines.lmms_eval.model"


def manifest() -> Any:
    """The entry of both interfaces; the entry point `lmms_eval.models` names this function."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(NAME, f"{MODULE}.SimpleModel", f"{MODULE}.ChatModel")
