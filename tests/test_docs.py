"""The documentation's links lead somewhere, and its examples are read as Python and YAML."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
from dvc.utils.serialize import load_yaml, parse_yaml

from efficientllava.models.families import FAMILIES
from efficientllava.parameters import Parameters
from efficientllava.parsing import parse_parameters
from efficientllava.registry import BENCHMARKS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MADE = ("docs/screenshots/",)
"""What a command writes; before it has run, links to it lead nowhere."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        target, _, section = link.partition("#")
        if not target.startswith("http"):
            linked = (page.parent / target).resolve() if target else page
            assert linked.exists() or name_of(linked).startswith(MADE), link
            if section:
                assert section in anchors(linked), link


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
    sections = [r"model\.(?:demo|source|revision)", *(rf"{name}\." for name in names)]
    text = page.read_text(encoding="utf-8")
    for path in re.findall(rf"`((?:{'|'.join(sections)})[a-z_.]*)[`:]", text):
        value: object = Parameters()
        for part in path.split("."):
            assert hasattr(value, part), path
            value = getattr(value, part)


def test_the_pipeline_s_page_names_every_choice() -> None:
    """The page leaves out no benchmark and no family of models that there is."""
    text = (ROOT / "docs" / "pipeline.md").read_text(encoding="utf-8")
    missing = [name for name in ("demo", *BENCHMARKS, *FAMILIES) if f"`{name}`" not in text]
    assert not missing


def architecture() -> str:
    return (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_architecture_s_tree_is_the_folders_own_words() -> None:
    """One line a folder: the first line of its docstring."""
    tree, above = {}, Path()
    for line in architecture().split("```")[1].strip().splitlines():
        folder, _, text = line.strip().partition("/ ")
        above = above if line.startswith(" ") else Path(folder)
        tree[above / folder if line.startswith(" ") else above] = text.strip()
    tops = [Path(name) for name in ("flows", "tasks", "efficientllava", "bench", "tools")]
    below = [
        path.relative_to(ROOT).parent for top in tops for path in ROOT.glob(f"{top}/*/__init__.py")
    ]
    assert set(tree) == {*tops, *below}
    for folder, text in tree.items():
        module = ast.parse((ROOT / folder / "__init__.py").read_text(encoding="utf-8"))
        assert text == (ast.get_docstring(module) or "").partition("\n")[0], folder


def test_architecture_s_layers_are_those_that_are_checked() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    [layers] = [each["layers"] for each in contracts if "containers" in each]
    assert architecture().split("```")[3].strip().splitlines() == layers


def test_architecture_s_stages_are_those_of_dvc_yaml() -> None:
    table = architecture().partition("## Stages")[2].partition("\n`parameters` checks")[0]
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    stages = load_yaml(str(ROOT / "dvc.yaml"))["stages"]
    assert named == [
        f"{name}@METHOD-RATIO" if "matrix" in stage else name for name, stage in stages.items()
    ]


GONE = re.compile(
    r"artifacts/database|search\.(workers|threads|early_stop)|\bsearch/[a-z_]+\.py"
    r"|stages? `database`|`database`,? (and|or) `|`database`, `search`"
)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_speaks_of_what_is_gone(page: Path) -> None:
    """The database is no stage, and what changes no result lies in `machine`."""
    assert not GONE.search(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    """`models/families/table.py` is a file of the library, `flows/serve.py` one of the clone."""
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", text):
        assert (ROOT / name).is_file() or (ROOT / "efficientllava" / name).is_file(), name


def test_pages_that_the_code_names_exist() -> None:
    """`docs/evaluate.md` in a message or docstring."""
    tops = ("efficientllava", "flows", "tasks", "bench", "tools")
    files = [*(path for top in tops for path in (ROOT / top).rglob("*.py")), ROOT / "params.yaml"]
    for path in (*files, ROOT / "prefect.yaml"):
        for name in re.findall(r"\bdocs/[a-z_/]+\.md", path.read_text(encoding="utf-8")):
            assert (ROOT / name).is_file(), f"{name_of(path)} names {name}"
