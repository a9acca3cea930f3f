"""Every method through the real stages, and each pruned checkpoint by plain transformers."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from efficientllava.cli import commands
from efficientllava.files import load_tensors, read_json
from tests.tasks.conftest import Here, Workspace, run_here

METHODS = [
    "wanda",
    "owl",
    "llm_pruner",
    "short_lvlm",
    "shortgpt",
    "sleb",
    "efficientllava",
]
SMALLER = {"llm_pruner", "short_lvlm", "shortgpt", "sleb"}
PLAIN = """
import json, sys
import torch
from transformers import AutoModelForImageTextToText
for folder in sys.argv[1:]:
    model, told = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        assert model(input_ids=torch.arange(5, 17)[None]).logits.isfinite().all()
    print(json.dumps([model.num_parameters(), model.config.text_config.num_hidden_layers]))
"""


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four blocks of four heads, pruned at a half by every method, evaluated and reported."""
    made = Workspace(tmp_path_factory.mktemp("methods"))
    made.set_parameters(
        {
            "methods": METHODS,
            "ratios": [0.5],
            "finalize": {"refine": "least_squares"},
            "model": {"demo": {"blocks": 4, "heads": 4}},
        }
    )
    for stage in ("questions", "model", "proxy"):
        assert run_here(made.folder, None, f"tasks.{stage}").status == 0, stage
    for method in METHODS:
        for stage in ("search", "prune", "evaluate"):
            cell = ("--method", method, "--ratio", "0.5")
            assert run_here(made.folder, None, f"tasks.{stage}", *cell).status == 0, (stage, method)
    dense = ("--method", "dense", "--ratio", "0")
    assert run_here(made.folder, None, "tasks.evaluate", *dense).status == 0
    assert run_here(made.folder, None, "tasks.report").status == 0
    return made.folder / "artifacts"


def test_the_report_tells_size_and_parameters(pruned: Path) -> None:
    table = list(csv.DictReader((pruned / "report" / "table.csv").read_text().splitlines()))
    rows = {row["method"]: row for row in table}
    assert list(rows) == ["dense", *METHODS]
    dense = rows["dense"]
    for method in METHODS:
        row = rows[method]
        assert float(row["achieved_sparsity"]) == pytest.approx(0.5, abs=0.011)
        if method in SMALLER:
            assert int(row["parameters"]) < int(dense["parameters"])
            assert int(row["bytes_on_disk"]) < int(dense["bytes_on_disk"])
        else:
            assert row["parameters"] == dense["parameters"]


def test_checkpoints_load_with_plain_transformers(pruned: Path) -> None:
    """The stage has compared the logits after reloading; here nothing of ours is at hand."""
    folders = [str(pruned / "pruned" / f"{method}-0.5") for method in METHODS]
    done = subprocess.run(
        [sys.executable, "-I", "-c", PLAIN, *folders], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    for method, (parameters, blocks) in zip(METHODS, told, strict=True):
        metrics = read_json(pruned / "pruned_metrics" / f"{method}-0.5.json")
        assert parameters == metrics["parameters"], method
        assert blocks == (2 if method in {"short_lvlm", "shortgpt", "sleb"} else 4)


@pytest.mark.parametrize("method", METHODS)
def test_verify_accepts_what_was_made_and_nothing_else(
    method: str, pruned: Path, tmp_path: Path
) -> None:
    folder = pruned / "pruned" / f"{method}-0.5"
    done = CliRunner().invoke(commands, ["verify", str(folder)])
    assert done.exit_code == 0, done.output
    assert f"{method} at 0.5" in done.output and "all weights finite" in done.output
    wrong = read_json(folder / "pruning.json")
    wrong["matrices"][0]["size"] += 1
    wrong["matrices"][0]["zeros"] += 1
    for file in folder.iterdir():
        if file.name != "pruning.json":
            (tmp_path / file.name).symlink_to(file)
    (tmp_path / "pruning.json").write_text(json.dumps(wrong))
    assert CliRunner().invoke(commands, ["verify", str(tmp_path)]).exit_code != 0


def test_a_ratio_that_removes_every_block_is_told(ready: Workspace, here: Here) -> None:
    ready.set_parameters({"methods": ["shortgpt"], "ratios": [0.9]})
    cell = ("--method", "shortgpt", "--ratio", "0.9")
    assert here(ready.folder, "tasks.search", *cell).status == 0
    outcome = here(ready.folder, "tasks.prune", *cell)
    assert outcome.status == 2 and "Traceback" not in outcome.error
    assert "removes 2 of 2 decoder blocks" in outcome.error


def test_a_pattern_that_a_method_cannot_make_is_told(workspace: Workspace, here: Here) -> None:
    workspace.set_parameters({"methods": ["llm_pruner"], "obs": {"pattern": "2:4"}})
    outcome = here(workspace.folder, "tasks.questions")
    assert outcome.status == 2 and "Traceback" not in outcome.error
    assert "2:4 cannot be had from llm_pruner" in outcome.error


def pruned_at(
    workspace: Workspace, here: Here, method: str, ratio: str
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The record of a model that the stages prune, and its prunable weights by name."""
    for stage in ("search", "prune"):
        outcome = here(workspace.folder, f"tasks.{stage}", "--method", method, "--ratio", ratio)
        assert outcome.status == 0, (stage, outcome.error)
    folder = workspace.folder / "artifacts" / "pruned" / f"{method}-{ratio}"
    record, found = read_json(folder / "pruning.json"), {}
    for name, weight in load_tensors(folder / "model.safetensors").items():
        for row in record["matrices"]:
            suffix = row["name"].rpartition("layers.")[2] + ".weight"
            if name.endswith("layers." + suffix) and "language" in name:
                found[row["name"]] = weight
    assert len(found) == len(record["matrices"]) > 0
    return record, found


def zeros_of_groups(weight: torch.Tensor, group: int) -> torch.Tensor:
    """Zeros in every group of consecutive weights of a row: [rows, groups]."""
    return (weight == 0).view(weight.shape[0], -1, group).sum(dim=2)


@pytest.mark.parametrize(
    ("pattern", "ratio", "zeros", "group", "method"),
    [
        ("1:4", "0.25", 1, 4, "sparsegpt"),
        ("1:4", "0.25", 1, 4, "efficientllava"),
        ("4:8", "0.5", 4, 8, "efficientllava"),
        ("2:4", "0.5", 2, 4, "efficientllava"),
        ("4:8", "0.5", 4, 8, "sparsegpt"),
        ("1:4", "0.25", 1, 4, "magnitude"),
        ("3:4", "0.75", 3, 4, "wanda"),
    ],
)
def test_a_pattern_has_its_number_of_zeros_in_every_group(
    pattern: str, ratio: str, zeros: int, group: int, method: str, ready: Workspace, here: Here
) -> None:
    """n:m is n zeros, as SparseGPT's prunen:prunem; the checkpoint has them, group by group."""
    ready.set_parameters(
        {
            "methods": [method],
            "ratios": [float(ratio)],
            "obs": {"pattern": pattern},
        }
    )
    record, found = pruned_at(ready, here, method, ratio)
    assert record["pattern"] == pattern
    for name, weight in found.items():
        assert (zeros_of_groups(weight, group) == zeros).all(), name
    summary = read_json(ready.folder / "artifacts" / "search" / f"{method}-{ratio}" / "search.json")
    assert ("varied" in summary) == (method == "efficientllava")
    assert "obs.patterns" in summary.get("varied", "obs.patterns")


@pytest.mark.parametrize(
    ("patterns", "ratio", "method"),
    [
        (["1:4", "2:4", "3:4"], "0.5", "efficientllava"),
        (["3:4", "1:4"], "0.5", "efficientllava"),
        (["1:8", "2:8", "4:8", "7:8"], "0.4", "no_evolution"),
        (["1:4", "2:4", "3:4"], "0.25", "sparsegpt"),
        (["1:4", "2:4", "3:4"], "0.75", "magnitude"),
    ],
)
def test_a_set_of_patterns_is_mixed_and_recorded(
    patterns: list[str], ratio: str, method: str, ready: Workspace, here: Here
) -> None:
    """Every group of a matrix has the zeros of the one pattern that its record names."""
    ready.set_parameters(
        {
            "methods": [method],
            "ratios": [float(ratio)],
            "obs": {"patterns": patterns},
            "search": {"band": [-0.01, 0.02], "offsets": [-0.1, 0.1]},
        }
    )
    record, found = pruned_at(ready, here, method, ratio)
    assert record["pattern"] == sorted(patterns)
    got = {row["name"]: row["pattern"] for row in record["matrices"]}
    for name, weight in found.items():
        zeros, group = map(int, got[name].split(":"))
        assert got[name] in patterns and record["policy"][name] == zeros / group
        assert (zeros_of_groups(weight, group) == zeros).all(), name
    searched = method in {"efficientllava", "efficientllava_plus", "no_evolution"}
    assert (len(set(got.values())) > 1) == searched
    assert -0.01 <= record["achieved_sparsity"] - float(ratio) <= 0.02
    policy = read_json(ready.folder / "artifacts" / "search" / f"{method}-{ratio}" / "policy.json")
    if searched:
        assert policy["levels"] == sorted(
            int(n) / int(m) for n, m in (each.split(":") for each in patterns)
        )


def test_a_cell_that_contradicts_the_pattern_is_refused(ready: Workspace, here: Here) -> None:
    ready.set_parameters(
        {
            "methods": ["magnitude"],
            "ratios": [0.25],
            "obs": {"pattern": "1:4"},
        }
    )
    outcome = here(ready.folder, "tasks.search", "--method", "magnitude", "--ratio", "0.75")
    assert outcome.status == 2 and "Traceback" not in outcome.error
    assert "1:4" in outcome.error and "0.25" in outcome.error
