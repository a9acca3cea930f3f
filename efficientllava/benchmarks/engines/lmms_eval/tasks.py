"""Tasks of lmms-eval by name, looked up before any work begins."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from efficientllava.benchmarks.engines.lmms_eval.package import first_line, require_package
from efficientllava.errors import UserError
from efficientllava.reading import expanded

WHERE = "evaluation.lmms_tasks"
GENERATED = "generate_until"
CHOSEN = ("multiple_choice", "loglikelihood")
DATA_REMEDY = (
    "check the network and the access: most data sets of lmms-eval ask for HF_TOKEN or "
    "`hf auth login`; without a network, HF_HOME must hold a copy (HF_HUB_OFFLINE=1)"
)


@dataclass(frozen=True)
class Tasks:
    """The tasks that parameters name.

    Attributes:
        manager: lmms-eval's own, which loads them.
        names: as the parameters name them.
        output_types: of every single task in them, by the name that the parameters have.
    """

    manager: Any
    names: tuple[str, ...]
    output_types: Mapping[str, frozenset[str]]

    def by_interface(self) -> list[tuple[bool, list[str]]]:
        """(whether its simple interface asks them, names): likelihoods have no other one."""
        groups: dict[bool, list[str]] = {}
        for name in self.names:
            groups.setdefault(self.output_types[name] != {GENERATED}, []).append(name)
        return list(groups.items())

    def load(self) -> None:
        """Load the data of all tasks, from the hub where it is not here; the evaluator takes it.

        Raises:
            UserError: it cannot be loaded.
        """
        for simple, names in self.by_interface():
            self.manager.keep(names, "simple" if simple else "chat")


@lru_cache(maxsize=1)
def find_tasks(names: tuple[str, ...], folder: str | None) -> Tasks:
    """Look tasks, groups and tags up, and read their definitions; no data is loaded.

    The package's own definitions are read only where the folder does not hold all names.

    Raises:
        UserError: there is no such name, with near ones; a definition cannot be read, or needs a
            package that is not installed; a task asks in a way that is not supported here.
    """
    require_package()
    if folder is not None and not expanded(folder).is_dir():
        raise UserError("no such folder", where=f"evaluation.lmms_folder: {folder}")
    place = None if folder is None else expanded(folder)
    manager = _manager(place, defaults=False) if place is not None else None
    if manager is None or not set(names) <= set(manager.all_tasks):
        manager = _manager(place, defaults=True)
    for name in names:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "its folder tasks/ holds all"
            raise UserError(f"lmms-eval has no task {name!r} ({hint})", where=WHERE)
    kinds = {name: frozenset(_output_types(manager, name)) for name in names}
    for name, found in kinds.items():
        if other := sorted(found - {GENERATED, *CHOSEN}):
            raise UserError(
                f"task {name} asks by {', '.join(other)}, which is not supported here",
                where=WHERE,
                remedy=f"supported: {', '.join((GENERATED, *CHOSEN))}",
            )
    return Tasks(manager, tuple(names), kinds)


def _manager(folder: Path | None, defaults: bool) -> Any:
    from lmms_eval.tasks import TaskManager

    class Guarded(TaskManager):  # type: ignore[misc]
        """lmms-eval's own, with one clear message where data cannot be loaded."""

        def keep(self, names: list[str], task_type: str) -> None:
            """Load tasks now, for the next call with the same arguments."""
            self._kept = getattr(self, "_kept", {})
            self._kept[(*names, task_type)] = self.load_task_or_group(names, task_type)

        def load_task_or_group(self, task_list: Any = None, task_type: str = "simple") -> Any:
            """As lmms-eval's; raises a UserError where data cannot be loaded."""
            kept = getattr(self, "_kept", {}).pop((*(task_list or ()), task_type), None)
            if kept is not None:
                return kept
            try:
                return super().load_task_or_group(task_list, task_type)
            except (UserError, KeyboardInterrupt):
                raise
            except Exception as error:  # its own kinds, those of datasets, of the hub and of http
                names = task_list if isinstance(task_list, str) else ", ".join(task_list)
                raise UserError(
                    f"its data cannot be loaded: {first_line(error)}",
                    where=f"lmms-eval, {names}",
                    remedy=DATA_REMEDY,
                ) from error

    try:
        return Guarded(
            "WARNING",
            include_path=None if folder is None else str(folder),
            include_defaults=defaults,
            model_name="efficientllava",
        )
    except Exception as error:  # whatever YAML and its readers raise
        raise UserError(
            f"task definitions cannot be read: {first_line(error)}",
            where="lmms-eval" if folder is None else f"evaluation.lmms_folder: {folder}",
        ) from error


def _output_types(manager: Any, name: str) -> Iterator[str]:
    """How each single task below a name asks."""
    entry = manager.task_index.get(name)
    if entry is None:
        raise UserError(f"a group names the task {name!r}, which is not there", where=WHERE)
    if entry["type"] == "tag":
        for child in entry["task"]:
            yield from _output_types(manager, child)
        return
    config = _definition(name, entry["yaml_path"])
    if entry["type"] == "group":
        yield from _of_group(manager, config)
    else:
        yield config.get("output_type") or GENERATED


def _of_group(manager: Any, config: Mapping[str, Any]) -> Iterator[str]:
    for child in config["task"]:
        if isinstance(child, str):
            yield from _output_types(manager, child)
        elif isinstance(child.get("task"), list):
            yield from _of_group(manager, child)
        elif child.get("task") in manager.task_index:
            yield from _output_types(manager, child["task"])
        else:
            yield child.get("output_type") or GENERATED


def _definition(name: str, path: str) -> dict[str, Any]:
    from lmms_eval.utils import load_yaml_config

    try:
        config: dict[str, Any] = load_yaml_config(path, mode="full")
    except ImportError as error:
        raise UserError(
            f"task {name} needs a package that is not installed: {first_line(error)}",
            where=WHERE,
            remedy="install it; docs/evaluate.md names tasks that need no further ones",
        ) from error
    except Exception as error:  # its Python files may raise anything, as for a missing key
        raise UserError(
            f"the definition of task {name} cannot be read: {first_line(error)}", where=path
        ) from error
    return config
