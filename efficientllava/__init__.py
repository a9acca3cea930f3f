"""EfficientLLaVA: generalizable auto-pruning for large vision-language models (CVPR 2025).

The public names are imported when they are first used: `import efficientllava` loads no torch.
It lets transformers load packed checkpoints (docs/sparse_format.md).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from efficientllava.when_imported import register

__version__ = "0.1.0"

_PUBLIC = {
    "load": "efficientllava.models.loading",
    "calibration_data": "efficientllava.calibration.data",
    "prune": "efficientllava.api",
    "Result": "efficientllava.api",
}
__all__ = ["Result", "calibration_data", "load", "prune"]


def __getattr__(name: str) -> Any:
    """A public name, by its module."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


register()
