"""Plain `dvc repro` on params.yaml files that are hostile, partial or changed under way."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from dvc.utils.serialize import dump_yaml, load_yaml

from efficientllava.files import folder_digest, read_json
from efficientllava.parameters import Parameters
from tasks.runtime.stage import read_parameters
from tests.tasks.conftest import Here, Outcome, Workspace

EARLIER = ("questions", "model", "proxy")
SHELL = [
    "magnitude; touch HIT; echo",
    "$(touch HIT)",
    "`touch HIT`",
    "magnitude' ; touch HIT ; '",
    'a" ; touch HIT ; "',
    "magnitude\ntouch HIT\n",
    "--help; touch HIT",
    "${ratios}; touch HIT",
]
HOSTILE: dict[str, dict[str, Any]] = {
    "methods": {"methods": SHELL},
    "ratios": {"ratios": [f"0.5{text}" for text in SHELL]},
    "mapping": {"methods": [{"method; touch HIT; x": "; touch HIT"}]},
    "list": {"methods": [["magnitude", "; touch HIT"]]},
    "text in place of a list": {"methods": "magnitude; touch HIT"},
    "path": {"methods": ["../../tasks"], "ratios": ["x; touch HIT"]},
    "path in a ratio": {"ratios": ["/../../../efficientllava"]},
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A clone in which all stages before the first matrix are cached."""
    made = Workspace(tmp_path_factory.mktemp("repro"))
    made.set_parameters()
    (made.folder / "experiments").mkdir()
    made.add_code()
    made.pretend_finished(*EARLIER)
    return made


def changed(clone: Workspace, change: dict[str, Any]) -> None:
    """Write params.yaml: tiny, with whole sections in place of others."""
    clone.set_parameters()
    path = str(clone.folder / "params.yaml")
    dump_yaml(path, {**load_yaml(path), **change})


def code(clone: Workspace) -> list[str]:
    return [folder_digest(clone.folder / name) for name in ("efficientllava", "tasks", "artifacts")]


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_parameter_reaches_a_shell_or_a_path(clone: Workspace, change: dict[str, Any]) -> None:
    before = code(clone)
    changed(clone, change)
    outcome = clone.run("dvc", "repro", "--keep-going")
    assert outcome.status != 0
    assert "Running stage 'search" not in outcome.output  # refused before any other stage
    assert not list(clone.folder.rglob("HIT")), "a shell has run it"
    assert code(clone) == before


def test_a_stage_on_its_own_runs_no_parameter_either(clone: Workspace) -> None:
    """`--single-item` leaves out the stage that checks params.yaml."""
    changed(clone, {"methods": ["magnitude; touch HIT"]})
    outcome = clone.run("dvc", "repro", "--single-item", "search@magnitude; touch HIT-0.5")
    assert outcome.status != 0 and "methods.0" in outcome.error
    assert not list(clone.folder.rglob("HIT"))


def test_a_stage_knows_its_model_from_dvc(
    clone: Workspace, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    changed(clone, {})
    outcome = clone.run("dvc", "repro", "search@magnitude-0.5")
    # the model is pretended: the stage knew its own model and got as far as opening the dense one
    assert outcome.status != 0 and "artifacts/model: the model folder has no" in outcome.error
    for name in ("search@wanda-0.5", "search@magnitude-0.50", "search", "search@"):
        monkeypatch.setenv("DVC_STAGE", name)
        told = here(clone.folder, "tasks.search")
        assert told.status == 2 and "Traceback" not in told.error
        assert "params.yaml, methods and ratios" in told.error


def test_a_stage_by_hand_needs_its_model(workspace: Workspace, here: Here) -> None:
    for given in ((), ("--method", "magnitude"), ("--ratio", "0.5")):
        told = here(workspace.folder, "tasks.search", *given)
        assert told.status == 2 and "give --method and --ratio" in told.error
    told = here(workspace.folder, "tasks.search", "--method", "wandaa", "--ratio", "0.5")
    assert told.status == 2 and "unknown method 'wandaa'" in told.error


@pytest.mark.parametrize(
    "ratio, told",
    [("0.5", "text is no number"), (True, "true and false are no value"), (1.0, "write 1")]
    + [(0.3333333, "write 0.333333")],
)
def test_ratios_that_dvc_would_call_otherwise(
    ratio: Any, told: str, workspace: Workspace, here: Here
) -> None:
    """The folder that the stage writes would not be the one that dvc.yaml names."""
    changed(workspace, {"ratios": [ratio]})
    outcome = here(workspace.folder, "tasks.questions")
    assert outcome.status == 2 and told in outcome.error


LISTS = {"methods": ["magnitude"], "ratios": [0.5]}
LEFT_OUT = [name for name in Parameters.model_fields if name not in LISTS]


def written(clone: Workspace, values: dict[str, Any]) -> Outcome:
    dump_yaml(str(clone.folder / "params.yaml"), values)
    return clone.run("dvc", "repro", "parameters")


def test_what_is_left_out_has_its_default_under_dvc(clone: Workspace) -> None:
    """Every section and every key that dvc.yaml names is missing; all stages can be compared."""
    assert written(clone, LISTS).status == 0
    effective = read_json(clone.folder / "artifacts" / "parameters.json")
    assert effective == Parameters(methods=("magnitude",)).model_dump(mode="json")
    status = clone.run("dvc", "status", *EARLIER)
    assert status.status == 0 and "missing" not in status.output + status.error
    outcome = clone.run("dvc", "repro", "--single-item", "--dry", "search@magnitude-0.5")
    assert outcome.status == 0, outcome.error
    # a default that is written is the same as one that is left out
    assert written(clone, {**Parameters().model_dump(mode="json"), **LISTS}).status == 0
    assert read_json(clone.folder / "artifacts" / "parameters.json") == effective


@pytest.mark.parametrize("section", LEFT_OUT)
def test_a_section_may_be_left_out_or_empty(section: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    for values in (LISTS, {**LISTS, section: {}}):
        dump_yaml(str(path), values)
        assert read_parameters(path) == Parameters(methods=("magnitude",))


def test_an_empty_file_has_all_defaults(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("")
    assert read_parameters(tmp_path / "params.yaml") == Parameters()


def test_a_default_that_changes_reruns_what_depends_on_it(clone: Workspace) -> None:
    assert written(clone, LISTS).status == 0
    before = clone.run("dvc", "status", "model", "proxy").output
    code = clone.folder / "efficientllava" / "parameters" / "model.py"
    text = code.read_text()
    assert (old := "segments: int = Field(64,") in text
    code.write_text(text.replace(old, "segments: int = Field(65,", 1))
    assert clone.run("dvc", "repro", "parameters").status == 0
    after = clone.run("dvc", "status", "model", "proxy").output
    code.write_text(text)
    told = (
        "proxy:\n\tchanged deps:\n\t\tartifacts/parameters.json:\n\t\t\tmodified:           proxy"
    )
    assert told in after
    assert before.count("model:") == after.count("model:")


def test_a_change_under_way_is_told(clone: Workspace, here: Here, monkeypatch: Any) -> None:
    """dvc.lock would name parameters with which the stage has not run."""
    changed(clone, {})
    assert clone.run("dvc", "repro", "parameters").status == 0
    changed(clone, {"ratios": [0.25]})
    outcome = clone.run("dvc", "repro", "--single-item", "--force", "questions")
    assert outcome.status != 0 and "has changed since the stage `parameters`" in outcome.error


def pretend_all_finished(clone: Workspace) -> list[str]:
    """Let DVC take every stage as done that is not; the names of all stages."""
    assert clone.run("dvc", "repro", "parameters").status == 0
    with Repo(str(clone.folder)) as repo:
        stages = [stage for stage in repo.index.stages if stage.name != "parameters"]
        for path in (Path(out.fs_path) for stage in stages for out in stage.outs):
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                target = path if path.suffix[1:].isalpha() else path / "file"
                target.parent.mkdir(exist_ok=True)
                target.write_text(path.name)
        names = [stage.name for stage in stages]
    assert clone.run("dvc", "commit", "--force", *names).status == 0
    return names


def stages_to_run(clone: Workspace, names: list[str], change: dict[str, Any]) -> set[str]:
    """The stages beside `parameters` that DVC runs again after a change of params.yaml."""
    clone.set_parameters(change)
    assert clone.run("dvc", "repro", "parameters").status == 0
    status = set(json.loads(clone.run("dvc", "status", "--json", *names).output or "{}"))
    dry = clone.run("dvc", "repro", "--dry").output
    assert set(re.findall(r"Running stage '([^']+)'", dry)) == status
    return status


def test_only_what_changes_a_result_reruns_a_stage(clone: Workspace) -> None:
    clone.set_parameters()
    names = pretend_all_finished(clone)
    others = {
        "workers": 3,
        "executor": "dask",
        "dask_address": "tcp://127.0.0.1:8786",
        "gradient_checkpointing": False,
        "device_memory": 2.5,
    }
    assert stages_to_run(clone, names, {"machine": others}) == set()
    searches = {name for name in names if name.startswith("search@")}
    assert len(searches) == 2
    # and the report, whose page shows eta
    assert stages_to_run(clone, names, {"search": {"eta": 0.25}}) == {*searches, "report"}
