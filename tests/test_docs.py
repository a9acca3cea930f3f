"""The documentation's links lead somewhere, and its examples are read as Python and YAML."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import get_args

import pytest
from dvc.utils.serialize import parse_yaml

from efficientllava.models.families import FAMILIES
from efficientllava.parameters import BenchmarkName, Parameters, parse_parameters

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MADE = ("docs/results.md", "docs/screenshots/")
"""What a command writes; before it has run, links to it lead nowhere."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            place = (page.parent / target).resolve()
            assert place.exists() or name_of(place).startswith(MADE), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_yaml_examples_are_valid_parameters(page: Path) -> None:
    for block in blocks(page, "yaml"):
        parse_parameters(parse_yaml(block.replace("<commit>", "abc"), "example"), name_of(page))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_examples_import_what_exists(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = __import__(node.module, fromlist=["_"])
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_parameters_that_are_named_exist(page: Path) -> None:
    """`search.eta` in running text is a parameter; `model.generate` is a method of transformers."""
    names = [name for name in Parameters.model_fields if name not in ("methods", "ratios", "model")]
    sections = [r"model\.(?:embedded|source|revision)", *(rf"{name}\." for name in names)]
    text = page.read_text(encoding="utf-8")
    for path in re.findall(rf"`((?:{'|'.join(sections)})[a-z_.]*)[`:]", text):
        value: object = Parameters()
        for part in path.split("."):
            assert hasattr(value, part), path
            value = getattr(value, part)


def test_your_own_model_and_data_names_every_choice() -> None:
    """The page leaves out no benchmark and no family of models that there is."""
    text = (ROOT / "docs" / "own_model_and_data.md").read_text(encoding="utf-8")
    benchmarks = get_args(BenchmarkName)
    missing = [name for name in ("embedded", *benchmarks, *FAMILIES) if f"`{name}`" not in text]
    assert not missing
