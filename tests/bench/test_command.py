"""`python -m bench` lists the benches and runs one; the documentation names those there are."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from bench.__main__ import benches, run
from efficientllava.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _arguments_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", list(sys.argv))


def test_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    listed = capsys.readouterr().out
    assert {"candidates", "database", "gpu", "memory", "obs"} <= set(benches())
    for name, line in benches().items():
        assert re.search(rf"^  {name} +{re.escape(line)}$", listed, re.MULTILINE) and line


@pytest.mark.parametrize("name", sorted(benches()))
def test_each_says_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: python -m bench {name}" in capsys.readouterr().out


def test_another_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"no bench is called 'databas'[^?]*did you mean database\?"
    ):
        run(["databas"])


def test_the_pages_name_benches_and_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    assert not re.findall(r"python -m bench\.", text)
    commands = re.findall(r"python -m bench ([a-z_.]+)([^`|\n]*)", text)
    assert len(commands) > 5
    for name, options in commands:
        with pytest.raises(SystemExit):
            run([name, "--help"])
        known = capsys.readouterr().out
        for option in re.findall(r"--[a-z-]+", options):
            assert option in known, (name, option)
