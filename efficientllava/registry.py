"""Registries of methods, families, benchmarks, engines and runtimes by name, ours and others'.

Ours are declared in one module each, which is imported at the first look-up. Another package adds
one by an entry point, whose object is loaded when its name is looked up:

    [project.entry-points."efficientllava.methods"]
    my_method = "my_package:MY_METHOD"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from efficientllava.errors import UserError, hint


class Registry(Mapping[str, Any]):
    """Objects by name, ours first, then those of other packages in alphabetical order.

    Args:
        kind: what they are, for messages: "method".
        declared: "module:NAME" of our own mapping from names to objects.
        group: entry point group of other packages'.
    """

    def __init__(self, kind: str, declared: str, group: str) -> None:
        self._kind, self._declared, self._group = kind, declared, group

    @property
    def _ours(self) -> Mapping[str, Any]:
        module, _, name = self._declared.partition(":")
        ours: Mapping[str, Any] = getattr(import_module(module), name)
        return ours

    @property
    def _others(self) -> dict[str, EntryPoint]:
        points = sorted(entry_points(group=self._group), key=lambda point: point.name)
        return {point.name: point for point in points}

    def __getitem__(self, name: str) -> Any:
        """The object of a name.

        Raises:
            UserError: no such name, with the nearest one; or the package that adds it cannot be
                imported.
        """
        ours = self._ours
        if name in ours:
            return ours[name]
        others = self._others
        if name not in others:
            guess = hint(name, list(self))
            remedy = (
                "take one of these" if guess.startswith("known") else f"known: {', '.join(self)}"
            )
            raise UserError(f"unknown {self._kind} {name!r} ({guess})", self._kind, remedy)
        try:
            return others[name].load()
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"{self._kind} {name} cannot be loaded: {error}",
                where=f"entry point {others[name].value} of {self._group}",
                remedy="install its package again, or remove it",
            ) from error

    def checked(self, name: str) -> str:
        """The name itself, for pydantic.

        Raises:
            ValueError: as `registry[name]`.
        """
        try:
            self[name]
        except UserError as error:
            raise ValueError(error.what) from error
        return name

    def __contains__(self, name: object) -> bool:
        return name in self._ours or name in self._others

    def __iter__(self) -> Iterator[str]:
        ours = self._ours
        yield from ours
        yield from (name for name in self._others if name not in ours)

    def __len__(self) -> int:
        return sum(1 for _ in self)


METHODS = Registry("method", "efficientllava.pruning.methods:OURS", "efficientllava.methods")
FAMILIES = Registry("family", "efficientllava.models.families:OURS", "efficientllava.families")
BENCHMARKS = Registry(
    "benchmark", "efficientllava.benchmarks.catalogue:OURS", "efficientllava.benchmarks"
)
ENGINES = Registry(
    "engine", "efficientllava.benchmarks.engines.catalogue:OURS", "efficientllava.engines"
)
RUNTIMES = Registry("runtime", "efficientllava.export.runtimes:OURS", "efficientllava.runtimes")
