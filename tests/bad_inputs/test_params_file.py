"""params.yaml as a file: its kind, bombs, depth, encodings, dangerous names."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bad_inputs.commands import Case, fault, prepare, run

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)
TEXTS: dict[str, tuple[str | bytes, str]] = {
    "a list": ("[1, 2]", "mapping"),
    "a text": ("hello", "mapping"),
    "a number": ("5", "mapping"),
    "aliases of a billion values": (BOMB, "aliases repeat"),
    "an anchor that holds itself": ("model: &a {demo: *a}", "holds itself"),
    "a list that holds itself": ("ratios: &a [*a]", "holds itself"),
    "an anchor of the whole": ("&a\nmodel: *a\n", "holds itself"),
    "nested lists": ("methods: " + "[" * 5000 + "]" * 5000, "nested"),
    "nested mappings": ("model: " + "{a: " * 5000 + "1" + "}" * 5000, "nested"),
    "unclosed": ("model: [", "not valid YAML"),
    "a tab": ("model:\n\tsource: demo", "not valid YAML"),
    "two documents": ("methods: [wanda]\n---\nratios: [0.5]\n", "not valid YAML"),
    "a key twice": ("methods: [wanda]\nmethods: [owl]\n", "methods"),
    "a mapping as key": ("{a: 1}: 2\n", "params.yaml"),
    "a tag that makes objects": ("model: !!python/object/apply:os.system [id]", "params.yaml"),
    "an unknown tag": ("model: !secret x", "params.yaml"),
    "an alias without anchor": ("model: *nothing", "params.yaml"),
    "an impossible date": ("model: 2001-99-99", "params.yaml"),
    "a number of many digits": ("methods: [wanda]\nratios: [" + "9" * 5000 + "]", "params.yaml"),
    "no UTF-8": (b"model: \xff\xfe", "UTF-8"),
    "UTF-16": ("model: demo".encode("utf-16"), "UTF-8"),
    "zeros": (bytes(100), "params.yaml"),
    "two megabytes": ("# x\n" * 2**19, "at most"),
    "a shell command as method": ('methods: ["magnitude; touch FILE; echo"]', "methods.0"),
    "a substitution as method": ('methods: ["$(touch FILE)"]', "methods.0"),
    "a shell command as ratio": ('ratios: ["0.5; touch FILE"]', "ratios"),
    "a path as method": ('methods: ["../../x"]', "methods.0"),
    "a rounded ratio": ("methods: [wanda]\nratios: [0.3333333]", "0.333333"),
    "two ratios of one name": ("methods: [wanda]\nratios: [0.5, 0.50000001]", "ratios"),
    "a ratio twice": ("methods: [wanda]\nratios: [0.5, 0.5]", "twice"),
    "all offsets outside": (
        "methods: [efficientllava]\nratios: [0.5]\nsearch: {offsets: [0.9, -0.9]}",
        "search",
    ),
    "no home of a user": ("methods: [wanda]\nmodel: {source: ~nobody-here/x}", "model.source"),
}
KINDS: dict[str, Callable[[Path], None]] = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "missing": lambda path: None,
}


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    prepare()


def told(folder: Path, word: str) -> None:
    case = Case("", ("tasks.parameters",), (word,))
    assert not (said := fault(case, run(case.command, folder))), said
    assert {path.name for path in folder.iterdir()} <= {"params.yaml"}, "nothing was made"


@pytest.mark.parametrize("name", TEXTS)
def test_content_is_told(name: str, tmp_path: Path) -> None:
    content, word = TEXTS[name]
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "params.yaml").write_bytes(data)
    told(tmp_path, word)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_no_file_is_told(name: str, tmp_path: Path) -> None:
    KINDS[name](tmp_path / "params.yaml")
    told(tmp_path, "file")


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "methods: [wanda]\nratios: [0.5]\n"])
def test_defaults_are_told_before_anything_runs(text: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(text)
    ended = run(("tasks.parameters",), tmp_path)
    assert ended.status == 0, ended.output
    assert "params.yaml leaves out" in ended.output and "3000" in ended.output
