"""Workspaces beside this one: the same stages under other parameters, with one cache for all.

Shared outputs (the model of a seed, its proxy data, a database) are computed once:
DVC finds it by its content.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dvc.config import Config
from dvc.utils.serialize import dump_yaml

from efficientllava.files import replacing
from efficientllava.models.source import BUILT
from efficientllava.parsing import parse_parameters
from efficientllava.versions.connection import tracking_uri
from flows.runner.graph import open_repo

CODE = ("efficientllava", "tasks")
# parameters that may name a path, relative to the workspace in which they stand
PATHS = ("model.source", "proxy.text", "proxy.pairs_source", "evaluation.text")


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The content of params.yaml with some parameters changed.

    Parameters that the file leaves out have their defaults, as in the pipeline.

    Args:
        values: of params.yaml.
        changes: value by dotted name.

    Raises:
        UserError: a changed parameter does not exist, or the outcome cannot work.
    """
    result = copy.deepcopy(dict(values))
    for name, value in changes.items():
        *sections, last = name.split(".")
        section = result
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = value
    parse_parameters(result)
    return result


def make_workspace(root: Path, folder: Path, values: dict[str, Any]) -> None:
    """Make `folder` a workspace with the code of `root` as it is now and with these parameters.

    Earlier outputs of its stages stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in CODE:
        with replacing(folder / name) as temporary:
            shutil.copytree(root / name, temporary, ignore=ignored)
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copyfile(root / name, folder / name)
    _absolute(values, root, PATHS)
    tracking = parse_parameters(values).tracking
    values.setdefault("tracking", {})["uri"] = tracking_uri(tracking, root)
    dump_yaml(str(folder / "params.yaml"), values)
    with open_repo(root) as repo:
        cache = repo.cache.local_cache_dir
    (folder / ".dvc").mkdir(exist_ok=True)
    shutil.copyfile(root / ".dvc" / "config", folder / ".dvc" / "config")
    with Config(str(folder / ".dvc")).edit("repo") as settings:
        settings["core"]["no_scm"] = True
        settings["cache"]["dir"] = cache


def _absolute(values: dict[str, Any], root: Path, names: Iterable[str]) -> None:
    pairs = (name.partition(".") for name in names)
    targets = [(values.get(section, {}), last) for section, _, last in pairs]
    data = values.get("evaluation", {}).get("data", {})
    for section, name in [*targets, *((data, benchmark) for benchmark in data)]:
        value = section.get(name, "demo")
        if value not in (None, *BUILT) and (root / value).exists():
            section[name] = str((root / value).resolve())
