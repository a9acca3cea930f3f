"""dvc.yaml names the code that a stage runs and parameters that exist."""

from __future__ import annotations

import ast
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import load_yaml

from efficientllava.parameters import Parameters
from tasks.report import SHOWN
from tasks.runtime.stage import _model
from tests.tasks.conftest import ROOT

STAGES: dict[str, Any] = load_yaml(str(ROOT / "dvc.yaml"))["stages"]
EFFECTIVE = "artifacts/parameters.json"
FOLLOWED = "efficientllava"
# what everything stands on; it decides no result
GROUND = {
    "errors",
    "files",
    "finite",
    "progress",
    "parameters",
    "parsing",
    "reading",
    "registry",
    "terminal",
} | {"__init__"}


def parameters_of(stage: str) -> list[str]:
    """Dotted names of the parameters that a stage depends on."""
    entries = STAGES[stage].get("params", [])
    assert all(list(entry) == [EFFECTIVE] for entry in entries), "defaults count too"
    return [name for entry in entries for name in entry[EFFECTIVE]]


def imported(path: Path) -> Iterator[Path]:
    """Library files (and what stages share of it) that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(FOLLOWED):
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [str(node.module)]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name.startswith("efficientllava")]
        else:
            continue
        for name in names:
            file = ROOT / (name.replace(".", "/") + ".py")
            known = GROUND & {*file.relative_to(ROOT).with_suffix("").parts[1:]}
            if file.is_file() and not known:
                yield file


def code_of(stage: str) -> set[Path]:
    """The library files that a stage's module reaches."""
    module = STAGES[stage]["cmd"].split()[2].replace(".", "/")
    reached: set[Path] = set()
    waiting = [ROOT / f"{module}.py"]
    while waiting:
        for file in imported(waiting.pop()):
            if file not in reached:
                reached.add(file)
                waiting.append(file)
    return reached


@pytest.mark.parametrize("stage", STAGES)
def test_stage_lists_the_code_it_runs(stage: str) -> None:
    listed = [ROOT / dep for dep in STAGES[stage]["deps"] if dep.startswith(("efficient", "tasks"))]
    missing = [
        str(file.relative_to(ROOT))
        for file in sorted(code_of(stage))
        if not any(file == dep or dep in file.parents for dep in listed)
    ]
    assert not missing, f"a change there would not re-run {stage}"


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_lists_exists(stage: str) -> None:
    for dep in STAGES[stage]["deps"]:
        assert dep.startswith("artifacts/") or (ROOT / dep).exists(), dep
    for name in parameters_of(stage):
        section: Any = Parameters()
        for part in name.split("."):
            section = getattr(section, part)
    module = STAGES[stage]["cmd"].split()[2].replace(".", "/")
    assert f"{module}.py" in STAGES[stage]["deps"]


@pytest.mark.parametrize("stage", STAGES)
def test_no_parameter_stands_in_a_command(stage: str) -> None:
    """DVC gives a command to a shell."""
    assert "$" not in STAGES[stage]["cmd"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_of_one_model_says_which(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the cell of its matrix or, the dense model, in its command."""
    _, _, module, *arguments = STAGES[stage]["cmd"].split()
    if "per_model=True" not in (ROOT / f"{module.replace('.', '/')}.py").read_text("utf-8"):
        assert not arguments and "matrix" not in STAGES[stage]
        return
    cell = "@efficientllava-0.5" if "matrix" in STAGES[stage] else ""
    monkeypatch.setenv("DVC_STAGE", f"{stage}{cell}")
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    ratio = float(given["--ratio"]) if "--ratio" in given else None
    chosen = _model(Parameters(), Namespace(method=given.get("--method"), ratio=ratio))
    expected = ("efficientllava", 0.5) if cell else ("dense", 0.0)
    assert (chosen["method"], chosen["ratio"]) == expected


@pytest.mark.parametrize("file", ["params.yaml", "tests/smallest_params.yaml"])
def test_parameter_files_have_the_lists_that_dvc_makes_stages_of(file: str) -> None:
    assert {"methods", "ratios"} <= set(load_yaml(str(ROOT / file)))


def test_proxy_depends_on_no_parameter_of_the_search() -> None:
    assert "search" not in parameters_of("proxy")


def test_stages_that_prepare_images_depend_on_the_style() -> None:
    depending = {
        name for name in STAGES if {"evaluation", "evaluation.style"} & {*parameters_of(name)}
    }
    assert depending == {"proxy", "evaluate_dense", "evaluate", "export", "report"}


def test_a_change_of_eta_runs_searches_only() -> None:
    """And the report, whose page shows it. What changes no result is nobody's dependency."""
    assert [name for name in STAGES if "search" in parameters_of(name)] == ["search", "report"]
    of_machine = {
        name for stage in STAGES for name in parameters_of(stage) if name.startswith("machine")
    }
    assert of_machine == {"machine.threads", "machine.device"}


def test_the_report_depends_on_the_parameters_it_shows() -> None:
    shown = {
        f"{name}.{key}" if isinstance(keys, set) else name
        for name, keys in SHOWN.items()
        for key in (keys if isinstance(keys, set) else [""])
    }
    # which ratio is compared by the summaries
    assert set(parameters_of("report")) == shown | {"tracking.champion_ratio"}
