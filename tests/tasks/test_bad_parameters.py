"""Parameters that cannot work: exit code 2 and the name, from the real command, at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks.runtime.stage import read_values
from tests.tasks.conftest import Workspace

BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "misspelt": (
        {"search": {"candidtes": 8}},
        ["unknown parameter search.candidtes", "did you mean candidates?"],
    ),
    "moved workers": (
        {"search": {"workers": 4}},
        ["unknown parameter search.workers", "it is machine.workers now"],
    ),
    "moved threads": ({"search": {"threads": 1}}, ["search.threads", "machine.threads"]),
    "renamed": (
        {"search": {"projector_checkpointing": True}},
        ["search.projector_checkpointing", "it is machine.gradient_checkpointing now"],
    ),
    "unknown section": ({"deployment": {"port": 1}}, ["unknown parameter deployment"]),
    "ratio above 1": ({"ratios": [1.2]}, ["ratios.0", "1.2"]),
    "ratio below 0": ({"ratios": [-0.1]}, ["ratios.0", "-0.1"]),
    "not a number": ({"search": {"rounds": "ten"}}, ["search.rounds", "'ten'"]),
    "unknown method": ({"methods": ["wandaa"]}, ["methods.0", "'wandaa'"]),
    "dense among the methods": ({"methods": ["dense"]}, ["methods", "always measured"]),
    "band that no policy meets": (
        {"search": {"offsets": [-0.1, 0.0], "band": [0.05, 0.08]}},
        ["band", "[0.55, 0.58]", "0.4, 0.5"],
    ),
    "n:m cut by the block size": (
        {"obs": {"pattern": "2:4", "block_size": 30}},
        ["block_size 30", "2:4"],
    ),
    "n:m with a ratio between the counts": (
        {"obs": {"pattern": "2:4"}, "ratios": [0.6], "methods": ["sparsegpt"]},
        ["ratio 0.6", "group of 4", "use ratios: [0.5]"],
    ),
    "n:m with the ratio of another n": (
        {"obs": {"pattern": "1:4"}, "ratios": [0.75], "methods": ["sparsegpt"]},
        ["ratio 0.75 contradicts obs.pattern 1:4", "use ratios: [0.25]"],
    ),
    "n:m with one right and one wrong ratio": (
        {"obs": {"pattern": "4:8"}, "ratios": [0.5, 0.25], "methods": ["wanda"]},
        ["ratio 0.25 contradicts obs.pattern 4:8", "use ratios: [0.5]"],
    ),
    "a pattern and a set of patterns": (
        {"obs": {"pattern": "2:4", "patterns": ["1:4", "2:4"]}},
        ["pattern 2:4 and patterns contradict", "give one"],
    ),
    "patterns of two group sizes": (
        {"obs": {"patterns": ["1:4", "2:8"]}},
        ["obs", "all of the same m"],
    ),
    "no pattern in the set": ({"obs": {"patterns": []}}, ["obs", "at least one n:m"]),
    "one pattern twice": ({"obs": {"patterns": ["1:4", "01:4"]}}, ["name one twice"]),
    "a set with all weights zero": (
        {"obs": {"patterns": ["2:4", "4:4"]}},
        ["pattern 4:4", "between 1 and m - 1"],
    ),
    "a set with what is no pattern": (
        {"obs": {"patterns": ["2:4", "unstructured"]}},
        ["obs.patterns.1", "unstructured"],
    ),
    "a set cut by the block size": (
        {"obs": {"patterns": ["1:4", "2:4"], "block_size": 30}},
        ["block_size 30", "multiple of 4"],
    ),
    "a ratio outside of the set": (
        {"obs": {"patterns": ["1:4", "2:4"]}, "ratios": [0.6], "methods": ["efficientllava"]},
        ["ratio 0.6 contradicts obs.patterns 1:4, 2:4", "from 0.25 to 0.5"],
    ),
    "a ratio between the patterns without a search": (
        {"obs": {"patterns": ["1:4", "3:4"]}, "methods": ["efficientllava", "magnitude"]},
        ["ratio 0.5 contradicts obs.patterns 1:4, 3:4", "magnitude", "[0.25, 0.75]"],
    ),
    "a set for a method that takes no pattern": (
        {"obs": {"patterns": ["1:4", "3:4"]}, "methods": ["owl"]},
        ["obs.patterns 1:4, 3:4 cannot be had from owl"],
    ),
    "a band that no mean of the set meets": (
        {
            "obs": {"patterns": ["1:4", "2:4"]},
            "search": {"band": [0.05, 0.06]},
            "methods": ["efficientllava"],
        },
        ["band", "0.25, 0.5", "obs.patterns"],
    ),
    "no pairs for the projector": (
        {"proxy": {"pairs": 0}},
        ["proxy.pairs", "efficientllava", "search.evolve_projector: false"],
    ),
    "no pairs for the calibration": (
        {"proxy": {"pairs": 0}, "methods": ["sparsegpt"]},
        ["proxy.pairs", "obs.calibration"],
    ),
    "hub id without its commit": (
        {"model": {"source": "llava-hf/llava-1.5-7b-hf"}},
        ["llava-hf/llava-1.5-7b-hf", "model.revision"],
    ),
    "model folder missing": (
        {"model": {"source": "./nowhere/model"}},
        ["./nowhere/model", "no such model folder"],
    ),
    "text file missing": ({"proxy": {"text": "./nowhere.txt"}}, ["./nowhere.txt"]),
    "folder of pairs missing": ({"proxy": {"pairs_source": "nowhere"}}, ["nowhere"]),
}


@pytest.mark.parametrize("change, told", BAD.values(), ids=BAD.keys())
def test_bad_parameters_are_told_before_any_work(
    workspace: Workspace, change: dict[str, Any], told: list[str]
) -> None:
    workspace.set_parameters(change)
    outcome = workspace.run("tasks.questions")
    assert outcome.status == 2, outcome.error
    for part in told:
        assert part in outcome.error
    assert "Traceback" not in outcome.error
    assert not (workspace.folder / "artifacts").exists()


@pytest.mark.parametrize(
    "text, told",
    [
        (None, "no such file"),
        ("model: [unclosed", "not valid YAML"),
        ("pruning:\n  patterns: [1:4, 2:4]\n", 'needs quotes, e.g. ["1:4", "2:4"]'),
        ("- a\n- list\n", "mapping of sections"),
    ],
)
def test_unreadable_parameters(workspace: Workspace, text: str | None, told: str) -> None:
    path = workspace.folder / "params.yaml"
    path.unlink()
    if text is not None:
        path.write_text(text)
    outcome = workspace.run("tasks.questions")
    assert outcome.status == 2, outcome.error
    assert told in outcome.error and "params.yaml" in outcome.error
    assert "Traceback" not in outcome.error


def test_bad_parameters_cost_no_import_of_torch(workspace: Workspace) -> None:
    """The message comes before anything heavy: the import of torch alone would take longer."""
    workspace.set_parameters({"search": {"candidtes": 8}})
    probe = (
        "import runpy, sys\n"
        "sys.argv = ['tasks.search', '--method', 'efficientllava', '--ratio', '0.5']\n"
        "try: runpy.run_module('tasks.search', run_name='__main__')\n"
        "except SystemExit as end: status = end.code\n"
        "sys.exit(0 if status == 2 and not {'torch', 'transformers'} & set(sys.modules) else 1)\n"
    )
    script = workspace.folder / "probe.py"
    script.write_text(probe)
    assert workspace.run("probe").status == 0


def test_a_number_with_exponent_is_a_number(workspace: Workspace) -> None:
    """PyYAML would read 1e-3 as a string."""
    from tasks.runtime.stage import read_parameters

    path = workspace.folder / "params.yaml"
    text = path.read_text().replace(
        "projector_learning_rate: 0.0001", "projector_learning_rate: 1e-3"
    )
    assert "1e-3" in text
    path.write_text(text)
    assert read_parameters(path).search.projector_learning_rate == 0.001


def test_repository_parameters_are_the_defaults() -> None:
    """params.yaml shows every default: what is written there and in the code cannot drift."""
    from efficientllava.parameters import Parameters
    from tasks.runtime.stage import read_parameters
    from tests.tasks.conftest import ROOT

    assert read_parameters(ROOT / "params.yaml") == Parameters()
    read_parameters(Path(ROOT / "tests" / "smallest_params.yaml"))


def test_parameters_that_begin_with_a_byte_order_mark(workspace: Workspace) -> None:
    path = workspace.folder / "params.yaml"
    plain = read_values(path)
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert read_values(path) == plain
