"""The stages that dvc.yaml declares, in the order in which they can run, and why one must."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.dependency.param import ParamsDependency
from dvc.dvcfile import PROJECT_FILE
from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.repo import Repo
from dvc.repo.reproduce import plan_repro

from efficientllava.errors import UserError, disk_error, without_users
from efficientllava.parameters import Parameters
from flows.runner.locks import lock_error

MODELS = "efficientllava/models"
"""The dependency of every stage that works with models (tests/tasks/test_dvc_yaml.py)."""


@dataclass(frozen=True)
class Node:
    """One stage.

    Attributes:
        name: as dvc.yaml and `dvc repro` call it, e.g. `search@efficientllava-0.5`.
        depends_on: names of the stages whose outputs it reads.
        works_with_models: whether its code imports torch and transformers.
    """

    name: str
    depends_on: tuple[str, ...]
    works_with_models: bool = False

    @property
    def base(self) -> str:
        """The stage's name without the cell of its matrix."""
        return self.name.partition("@")[0]

    @property
    def cell(self) -> str:
        """The cell of its matrix, e.g. `efficientllava-0.5`; empty without a matrix."""
        return self.name.partition("@")[2]


def open_repo(root: Path) -> Repo:
    """The DVC repository of a workspace, as its files are now.

    Raises:
        UserError: there is none, or dvc.yaml, dvc.lock or a template in them is broken.
    """
    try:
        return Repo(str(root))
    except NotDvcRepoError as error:
        raise UserError(
            "not a DVC workspace", where=str(root), remedy="start in the clone, or run `dvc init`"
        ) from error
    except DvcException as error:
        raise UserError(str(error), where="DVC") from error
    except (OSError, sqlite3.Error) as error:
        raise disk_error(error, root / ".dvc" / "tmp") or error from error


def read_graph(root: Path, until: Collection[str] = ()) -> list[Node]:
    """The stages, each after those it depends on: the order in which `dvc repro` runs them.

    Args:
        until: stages (without their cells) that are wanted, with all they depend on; all if empty.

    Raises:
        UserError: see `open_repo`; or dvc.yaml declares no stage.
    """
    with open_repo(root) as repo:
        try:
            graph = repo.index.graph
        except DvcException as error:
            raise _unreadable(error) from error
        nodes = [
            Node(
                stage.addressing,
                tuple(sorted(other.addressing for other in graph[stage])),
                any(dependency.def_path == MODELS for dependency in stage.deps),
            )
            for stage in plan_repro(graph, repo.stage.collect(PROJECT_FILE))
        ]
    if not nodes:
        raise UserError("declares no stage", where=str(root / "dvc.yaml"))
    if not until:
        return nodes
    requested = {node.name for node in nodes if node.base in until}
    for node in reversed(nodes):  # dependencies come earlier
        if node.name in requested:
            requested.update(node.depends_on)
    return [node for node in nodes if node.name in requested]


def _unreadable(error: DvcException) -> UserError:
    """The graph's error, with a remedy where a list that DVC makes stages of is missing."""
    what, remedy = _messages(error), ""
    for name, values in (("methods", Parameters().methods), ("ratios", Parameters().ratios)):
        if f"Could not find '{name}'" in what:
            remedy = f"write into params.yaml, e.g. `{name}: [{', '.join(map(str, values))}]`"
    return UserError(what, where="dvc.yaml", remedy=remedy)


def _load(repo: Repo, stage: str) -> Any:
    """A stage as dvc.yaml and dvc.lock have it."""
    [loaded] = repo.stage.collect(stage)
    return loaded


def _messages(error: BaseException) -> str:
    """A DVC error with its causes: the reason is often only in the cause."""
    parts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        if (text := str(cause).strip()) and text not in parts:
            parts.append(text)
        cause = cause.__cause__
    return ": ".join(parts)


def why(root: Path, stage: str) -> str | None:
    """Why a stage has to run; None when nothing it depends on has changed.

    Raises:
        UserError: DVC cannot tell, e.g. because a file it depends on is missing.
    """
    with open_repo(root) as repo:
        try:
            loaded = _load(repo, stage)
            never_ran = not any(out.hash_info for out in loaded.outs)
            status = repo.status(targets=[stage]).get(stage)
            if not status:
                return None
            reasons = [*_changed_parameters(loaded), *_reasons(status)]
        except DvcException as error:
            about_locks = lock_error(error, Path(repo.tmp_dir), stage)
            raise about_locks or UserError(_messages(error), where=f"stage {stage}") from error
    return "it has not run yet" if never_ran else "; ".join(reasons)


class Changes:
    """The changes since stages ran.

    Until the first stage runs, DVC is asked once for all stages: asked for each, it looks for files
    to ignore in the thousands of folders of the questions again. From then on it is asked for each.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._changed: set[str] | None = None
        self._each = False

    def stage_runs(self) -> None:
        """A stage is about to run: forget the status of the stages behind it."""
        self._changed, self._each = None, True

    def why(self, stage: str) -> str | None:
        """See `why`."""
        if self._changed is None and not self._each:
            with open_repo(self._root) as repo:
                try:
                    self._changed = set(repo.status())
                except DvcException:  # one of the stages cannot be read: that one says so below
                    self._each = True
        if self._changed is not None and stage not in self._changed:
            return None
        return why(self._root, stage)


def _changed_parameters(stage: Any) -> Iterator[str]:
    """Every parameter that differs from the stage's last run, and how."""
    for dependency in stage.deps:
        if isinstance(dependency, ParamsDependency) and dependency.hash_info:
            before, now = (
                flatten(values) for values in (dependency.hash_info.value, dependency.read_params())
            )
            for name in sorted(before.keys() | now.keys()):
                old, new = before.get(name, "unset"), now.get(name, "unset")
                if old != new:
                    yield without_users(f"{name} was {old}, is {new}")


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names; lists stay values."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(flatten(value, f"{prefix}.{name}" if prefix else str(name)))
    return flat


def _reasons(status: list[Any]) -> Iterator[str]:
    """DVC's status of inputs, outputs and command, in words."""
    wording = {"changed checksum": "its command or its lists changed"}
    for item in status:
        if isinstance(item, str):
            yield wording.get(item, item)
            continue
        for kind, entries in item.items():
            what = {"changed deps": "input", "changed outs": "output"}.get(kind, kind)
            for path, change in entries.items():
                if not isinstance(change, Mapping):  # parameters are reported one by one
                    yield f"{what} {path} {change}"


def restore_outputs(root: Path, stage: str) -> list[str]:
    """Bring back the last finished outputs of a stage, which DVC removes before it runs.

    Returns the paths that were missing and are there again; nothing when dvc.lock does not know
    the stage. Never raises: it runs on the way out of a failure that matters more.
    """
    try:
        with open_repo(root) as repo:
            if not any(out.hash_info for out in _load(repo, stage).outs):
                return []
            changes = repo.checkout(targets=[stage], force=True, allow_missing=True)
            return sorted(str(path) for path in (changes or {}).get("added", []))
    except (DvcException, UserError, OSError):
        return []
