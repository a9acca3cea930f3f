"""Additions of another package, as docs/architecture.md shows them: they run like ours.

The package is made of the page's own blocks, beside a .dist-info folder, as pip installs it.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from efficientllava.files import load_tensors, read_json
from efficientllava.models.checkpoint import save_checkpoint
from tests.models.families import TINY
from tests.tasks.conftest import ROOT, Here, Outcome, Workspace, clean_environment, run_here

CELL = ("--method", "prune_first", "--ratio", "0.5")
DENSE = ("--method", "dense", "--ratio", "0")
QUESTIONS = [{"question_id": str(n), "text": f"w{n}"} for n in range(4)]


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages that holds the page's package."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    site = tmp_path_factory.mktemp("site")
    modules = re.findall(r"```python\n# (my_package/\w+\.py)\n(.*?)```", page, re.DOTALL)
    (site / "my_package").mkdir()
    (site / "my_package" / "__init__.py").write_text("")
    for name, text in modules:
        (site / name).write_text(text)
    (table,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    groups = tomllib.loads(table)["project"]["entry-points"]
    information = site / "my_package-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
            for group, points in groups.items()
        )
    )
    assert {point.split(":")[0] for each in groups.values() for point in each.values()} == {
        name.removesuffix(".py").replace("/", ".") for name, _ in modules
    }
    return site


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of the toy family, words for it, and the toy benchmark's questions."""
    folder = tmp_path_factory.mktemp("given")
    save_checkpoint(*TINY["llama"].build(), folder / "model")
    file = folder / "model" / "config.json"
    values = read_json(file) | {"model_type": "toy_llama", "architectures": ["ToyLlama"]}
    file.write_text(json.dumps(values))
    (folder / "text.txt").write_text(" ".join(f"w{n * n % 50}" for n in range(20000)))
    (folder / "echo").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in QUESTIONS)
    (folder / "echo" / "test.jsonl").write_text(lines)
    return folder


@pytest.fixture(scope="module")
def importable(outside: Path) -> Iterator[None]:
    """The package is installed for this process too, where torch is loaded once."""
    sys.path.append(str(outside))
    yield
    sys.path.remove(str(outside))


@pytest.fixture(scope="module")
def ran(importable: None, given: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifacts of all stages' commands, with nothing but additions."""
    made = Workspace(tmp_path_factory.mktemp("stages"))
    made.set_parameters(
        {
            "model": {"source": str(given / "model")},
            "proxy": {"text": str(given / "text.txt")},
            "methods": ["prune_first"],
            "ratios": [0.5],
            "evaluation": {"benchmark": "echo", "data": {"echo": str(given / "echo")}},
        }
    )
    for stage, cell in (
        ("parameters", ()),
        ("model", ()),
        ("proxy", ()),
        ("search", CELL),
        ("prune", CELL),
        ("evaluate", CELL),
        ("evaluate", DENSE),
        ("report", ()),
    ):
        assert run_here(made.folder, None, f"tasks.{stage}", *cell).status == 0, stage
    return made.folder / "artifacts"


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str]) -> Here:
    """Run a command in this process: `here(folder, "efficientllava.cli", "prune", ...)`."""
    return lambda folder, module, *arguments: run_here(folder, capfd, module, *arguments)


def command(outside: Path, *arguments: str | Path) -> Outcome:
    """Run `efficientllava ARGUMENTS` as a process of its own, with the package installed."""
    return python(outside, "-m", "efficientllava.cli", *arguments)


def python(outside: Path, *arguments: str | Path) -> Outcome:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=clean_environment() | {"PYTHONPATH": f"{ROOT}:{outside}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Outcome(done.returncode, done.stderr, done.stdout)


def first_weights_are_zero(folder: Path) -> bool:
    """Whether the first half of every row of the pruned matrices is zero, and nothing else."""
    weights = load_tensors(folder / "model.safetensors")
    pruned = [
        weights[f"{row['name']}.weight"] for row in read_json(folder / "pruning.json")["matrices"]
    ]
    return bool(pruned) and all(
        torch.equal(weight == 0, (torch.arange(columns) < columns // 2).expand_as(weight))
        for weight in pruned
        for columns in [weight.shape[1]]
    )


def test_stages_prune_a_family_by_a_method_from_outside(ran: Path) -> None:
    assert first_weights_are_zero(ran / "pruned" / "prune_first-0.5")


def test_stages_score_a_benchmark_from_outside(ran: Path) -> None:
    folder = ran / "evaluation" / "prune_first-0.5"
    scores = read_json(folder / "scores.json")
    assert (scores["benchmark"], scores["source"], scores["n"]) == ("echo", "my_package", 4)
    first = json.loads((folder / "answers" / "echo.jsonl").read_text().splitlines()[0])
    assert first["question_id"] == 0 and first["prompt"] == "w0"


def test_additions_are_tabled(ran: Path) -> None:
    report = ran / "report"
    rows = list(csv.DictReader((report / "table.csv").read_text().splitlines()))
    assert [row["method"] for row in rows] == ["dense", "prune_first"]
    assert float(rows[1]["achieved_sparsity"]) == 0.5 and rows[1]["accuracy"] != ""
    assert "prune_first" in (report / "table.md").read_text()


def test_prune_command(outside: Path, given: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    text = ("--text", given / "text.txt", "--work", tmp_path / "work", "--output", output)
    done = command(outside, "prune", given / "model", "--method", "prune_first", *text)
    assert done.status == 0, done.error
    assert "prune_first at 0.5" in done.output and "50.0000%" in done.output
    assert first_weights_are_zero(output)
    checked = command(outside, "verify", output)
    assert checked.status == 0 and "prune_first at 0.5" in checked.output, checked.error


def test_processor_of_a_family_from_outside_is_read_first(outside: Path, given: Path) -> None:
    """As stage `proxy` reads it: before any model, from which the family would be known."""
    code = "import sys; from efficientllava.models.checkpoint import load_processor"
    done = python(outside, "-c", f"{code}; load_processor(sys.argv[1])", given / "model")
    assert done.status == 0, done.error


def test_score_command(outside: Path, given: Path, tmp_path: Path) -> None:
    file, output = tmp_path / "answers.jsonl", tmp_path / "scores.json"
    answers = [row | {"text": "w0"} for row in QUESTIONS]
    file.write_text("".join(json.dumps(row) + "\n" for row in answers))
    place = ("--data", given / "echo", "--output", output)
    done = command(outside, "score", "echo", file, *place)
    assert done.status == 0, done.error
    assert "Echo" in done.output and "25.0" in done.output
    assert read_json(output)["accuracy"] == 0.25


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"methods": ["prune_frst"]}, "unknown method 'prune_frst' (did you mean prune_first?)"),
        (
            {"evaluation": {"benchmark": "ecko", "data": {"echo": "x"}}},
            "unknown benchmark 'ecko' (did you mean echo?)",
        ),
    ],
)
def test_misspelt_in_parameters(
    change: dict[str, object], told: str, outside: Path, tmp_path: Path
) -> None:
    made = Workspace(tmp_path, {"PYTHONPATH": f"{ROOT}:{outside}"})
    made.set_parameters(change)
    outcome = made.run("tasks.parameters")
    assert outcome.status == 2 and told in outcome.error
    assert "Traceback" not in outcome.error


def test_misspelt_in_commands(importable: None, given: Path, tmp_path: Path, here: Here) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in (given / "model").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    config = read_json(model / "config.json") | {"model_type": "toy_lama"}
    (model / "config.json").write_text(json.dumps(config))
    wrong: dict[str, tuple[str | Path, ...]] = {
        "did you mean prune_first?": ("prune", given / "model", "--method", "prune_frst"),
        "did you mean toy_llama?": ("prune", model, "--method", "prune_first"),
        "did you mean echo?": ("score", "ecko", model / "config.json", "--data", model),
    }
    for told, arguments in wrong.items():
        outcome = here(tmp_path, "efficientllava.cli", *map(str, arguments))
        assert outcome.status == 2 and told in outcome.error, outcome.error
        assert "Traceback" not in outcome.error


def test_the_same_names_are_unknown_without_the_package(tmp_path: Path) -> None:
    made = Workspace(tmp_path)
    made.set_parameters({"methods": ["prune_first"]})
    outcome = made.run("tasks.parameters")
    assert outcome.status == 2 and "unknown method 'prune_first'" in outcome.error


# a runtime from outside (`efficientllava.runtimes`) belongs here too, once a runtime is one class
