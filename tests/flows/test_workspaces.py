"""Workspaces of experiments: which stages are wanted, which parameters stand in them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from dvc.utils.serialize import dump_yaml, load_yaml

from efficientllava.errors import UserError
from efficientllava.parameters import Parameters
from efficientllava.parsing import parse_parameters
from flows.experiments import EXPERIMENTS
from flows.form import seeded
from flows.runner.graph import open_repo, read_graph
from flows.server.workspaces import PATHS, changed, make_workspace
from flows.tracking.record import read_record
from tests.flows.conftest import ROOT, change


def test_only_what_is_wanted_and_what_it_needs(toy: Path) -> None:
    assert [n.name for n in read_graph(toy, ("evaluate_dense",))] == ["model", "evaluate_dense"]
    names = {node.name for node in read_graph(toy, ("prune",))}
    assert "search@magnitude-0.5" in names and "evaluate@magnitude-0.5" not in names


def test_parameters_are_checked_before_any_other_stage() -> None:
    first, *others = read_graph(ROOT)
    assert first.name == "parameters" and not first.depends_on
    for node in others:
        assert "parameters" in node.depends_on, node.name


@pytest.mark.parametrize("name", ["methods", "ratios"])
def test_a_list_that_dvc_needs_is_told(name: str, toy: Path) -> None:
    """DVC's templates know no defaults; with one in `vars` it refuses the list in params.yaml."""
    path = toy / "params.yaml"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith(name)))
    with pytest.raises(UserError) as told:
        read_graph(toy)
    assert f"write into params.yaml, e.g. `{name}: [" in told.value.remedy


def test_the_file_of_parameters_is_no_data_of_a_model(toy: Path) -> None:
    """Its values are logged, those that the model's stages use; any other changes no record."""
    stages = load_yaml(str(toy / "dvc.yaml"))
    stages["stages"]["parameters"] = {
        "cmd": "mkdir -p artifacts && cp params.yaml artifacts/parameters.yaml",
        "deps": ["params.yaml"],
        "outs": ["artifacts/parameters.yaml"],
    }
    stages["stages"]["model"]["params"] = [{"artifacts/parameters.yaml": ["model.demo"]}]
    dump_yaml(str(toy / "dvc.yaml"), stages)
    records = []
    for seed in (0, 5):  # of the search, which `model` does not use
        change(toy, "rounds: 3, seed: 0", f"rounds: 3, seed: {seed}")
        subprocess.run([sys.executable, "-m", "dvc", "repro", "-q", "evaluate_dense"], check=True)
        records.append(read_record(toy, read_graph(toy, ("evaluate_dense",)), "dense"))
    assert records[0].parameters == {"model.demo.seed": 0}
    assert [item.path for item in records[0].inputs] == ["artifacts/model"]
    assert records[0].digest == records[1].digest


def test_a_workspace_holds_the_code_the_changes_and_the_same_cache(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words")
    changes = {"methods": ["sparsegpt"], "proxy.segments": 7, "proxy.text": str(text)}
    values = changed({"proxy": {"pairs": 9}}, {**changes, **seeded(Parameters(), 3)})
    assert "pruning" not in values  # what is left out stays left out
    folder = tmp_path / "workspace"
    make_workspace(ROOT, folder, values)
    written = parse_parameters(load_yaml(str(folder / "params.yaml")))
    assert written.methods == ("sparsegpt",)
    assert (written.proxy.segments, written.proxy.seed) == (7, 3)
    assert written.model.demo.seed == 3
    assert written.tracking.uri == f"sqlite:///{ROOT}/mlflow.db"
    assert (folder / "tasks" / "search.py").read_bytes() == (
        ROOT / "tasks" / "search.py"
    ).read_bytes()
    with open_repo(folder) as mine, open_repo(ROOT) as whole:
        assert mine.cache.local.path == whole.cache.local.path
    # made again, it keeps what its stages have made
    (folder / "artifacts").mkdir()
    make_workspace(ROOT, folder, values)
    assert (folder / "artifacts").is_dir()


def test_a_seed_of_one_s_own_model_leaves_the_model_alone() -> None:
    own = parse_parameters({"model": {"source": "./checkpoint"}})
    assert "model.demo.seed" not in seeded(own, 1)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_ask_for_methods_and_stages_that_exist(name: str) -> None:
    experiment = EXPERIMENTS[name]
    changed({}, {"methods": list(experiment.methods), "ratios": list(experiment.ratios)})
    for setting in experiment.settings(Parameters()):
        changed({}, dict(setting))
    stages = load_yaml(str(ROOT / "dvc.yaml"))["stages"]
    assert set(experiment.until) <= set(stages)


def test_names_that_may_be_paths_are_parameters() -> None:
    changed({}, dict.fromkeys(PATHS, "demo"))
    with pytest.raises(UserError, match="proxy.textt"):
        changed({}, {"proxy.textt": "demo"})
