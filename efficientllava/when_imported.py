"""What this package adds to transformers is registered when transformers is imported, not before.

`import efficientllava` stays light: it loads neither transformers nor torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

TRIGGER = "transformers.modeling_utils"
"""The module that looks for quantizers; no checkpoint loads without it."""
ADDED = "efficientllava.sparse.quantizer"


class _Watch(MetaPathFinder):
    """Finds the trigger where the other finders do, and adds to its loading."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != TRIGGER:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Registering(spec.loader)
                return spec
        return None


class _Registering(Loader):
    """Loads a module as its own loader does, then imports what is added."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # from here on the module is as if nobody had watched
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        import_module(ADDED)


def register() -> None:
    """Register with transformers now if it is imported, else as soon as it is."""
    if TRIGGER in sys.modules:
        import_module(ADDED)
    elif not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())
