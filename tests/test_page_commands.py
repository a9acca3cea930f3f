"""A command that the pages for teams show is run by a test, or the reason why not is written."""

from __future__ import annotations

import ast
import tomllib

import pytest

from tests.page_commands import DOCS, NOT_RUN, RESULTS, RUN, TEAM_PAGE, commands

ROOT = DOCS.parent


@pytest.mark.parametrize("page", RUN)
def test_every_command_is_run_by_a_test(page: str) -> None:
    shown = set(commands(page))
    in_order = set(commands(page, RESULTS)) if RESULTS in (DOCS / page).read_text() else set()
    listed = RUN[page].keys() | NOT_RUN.keys()
    assert shown - in_order - listed == set(), "give it a test, and name it in page_commands.py"
    assert RUN[page].keys() <= shown, "no longer on the page"


def test_what_no_test_runs_is_still_shown() -> None:
    assert NOT_RUN.keys() <= {command for page in RUN for command in commands(page)}


@pytest.mark.parametrize(
    "test", sorted({TEAM_PAGE, *(t for page in RUN.values() for t in page.values())})
)
def test_the_tests_exist(test: str) -> None:
    file, _, name = test.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_extras_that_are_to_be_installed_exist() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert {"pipeline", "servers"} <= settings["project"]["optional-dependencies"].keys()
