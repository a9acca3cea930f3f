"""Pruned matrices as bitmasks and packed values: format, checkpoints, layers, their kernels."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "SparseLinear": "efficientllava.sparse.linear",
    "pack_checkpoint": "efficientllava.sparse.checkpoint",
    "unpack_checkpoint": "efficientllava.sparse.checkpoint",
}
__all__ = ["SparseLinear", "pack_checkpoint", "unpack_checkpoint"]


def __getattr__(name: str) -> Any:
    """A public name, by its module: torch is imported with the first of them."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
