"""What a run is asked for beside params.yaml: as DVC applies it, checked as params.yaml is."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from dvc.utils.serialize import load_yaml
from prefect.utilities.callables import parameter_schema

from efficientllava.errors import UserError
from efficientllava.parameters import Parameters
from efficientllava.registry import METHODS
from flows.form import Form, overridden, record_of, summary, tags_of, workspace
from flows.pipeline import pipeline
from flows.plan import parse_form
from tests.flows.conftest import ROOT

VALUES = {"methods": ["magnitude"], "ratios": [0.5], "search": {"seed": 0, "rounds": 3}}


@pytest.mark.parametrize(
    ("overrides", "section", "name", "value"),
    [
        (["search.rounds=5"], "search", "rounds", 5),
        (["search.candidates=7"], "search", "candidates", 7),  # params.yaml leaves it out
        (["search.band=[-0.02, 0.02]"], "search", "band", [-0.02, 0.02]),
        (["sensitivity.step=0.1"], "sensitivity", "step", 0.1),
        (["search.patience=null"], "search", "patience", None),
        (["  search.rounds=5 ", "", "search.rounds=6"], "search", "rounds", 6),
        (["~search.rounds"], "search", "rounds", "gone"),
    ],
)
def test_overrides_are_dvc_s(
    overrides: list[str], section: str, name: str, value: object, tmp_path: Path
) -> None:
    result = overridden(VALUES, Form(overrides=overrides), tmp_path)
    assert result[section].get(name, "gone") == value
    assert result["methods"] == ["magnitude"] and VALUES["search"] == {"seed": 0, "rounds": 3}
    assert not list((tmp_path / ".work").iterdir())


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (Form(overrides=["search.rouns=5"]), r"overrides: .*search\.rouns .*did you mean rounds"),
        (Form(overrides=["search.rounds=many"]), r"search\.rounds: .*many"),
        (Form(overrides=["search.rounds=1,2"]), "several values"),
        (Form(overrides=["search.rounds"]), "cannot be read"),
        (Form(overrides=["a b=c d=["]), "cannot be read"),
        (Form(methods=["magnitud"]), "magnitud"),
        (Form(ratios=[1.5]), "ratios"),
        (Form(methods=["magnitude", "magnitude"]), "names one twice"),
    ],
)
def test_what_cannot_work_is_told(form: Form, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        overridden(VALUES, form, tmp_path)


def test_a_form_s_workspace(tmp_path: Path) -> None:
    """It is made of params.yaml and the form, under one name for one form; params.yaml stays."""
    for name in ("params.yaml", "dvc.yaml", ".dvcignore"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_bytes((ROOT / ".dvc" / "config").read_bytes())
    for name in ("efficientllava", "tasks"):
        (tmp_path / name).mkdir()
    before = (tmp_path / "params.yaml").read_bytes()
    assert workspace(tmp_path, Form(overrides=[" "])) == tmp_path
    form = Form(["owl"], [0.3], 7, ["search.rounds=5"])
    folder = workspace(tmp_path, form)
    assert folder.parent == tmp_path / ".work" / "runs"
    assert folder.name.startswith("owl-0.3-seed-7-")
    assert workspace(tmp_path, form) == folder != workspace(tmp_path, Form(["owl"], [0.3], 7))
    values = load_yaml(str(folder / "params.yaml"))
    assert (values["methods"], values["ratios"], values["search"]["rounds"]) == (["owl"], [0.3], 5)
    assert (
        values["proxy"]["seed"] == values["search"]["seed"] == values["model"]["demo"]["seed"] == 7
    )
    assert values["tracking"]["uri"] == f"sqlite:///{tmp_path}/mlflow.db"
    assert (tmp_path / "params.yaml").read_bytes() == before
    with pytest.raises(UserError, match="did you mean rounds"):
        workspace(tmp_path, Form(overrides=["search.rouns=5"]))


def test_runs_are_named_tagged_and_recorded() -> None:
    parameters = Parameters(methods=("efficientllava",), ratios=(0.5,))
    assert summary(parameters) == "efficientllava 0.5 seed 0"
    many = Parameters(methods=("magnitude", "owl", "wanda"), ratios=(0.3, 0.5))
    assert summary(many) == "3 methods 0.3+0.5 seed 0"
    form = Form(overrides=["search.rounds=5"])
    assert tags_of(parameters, form) == {
        "method efficientllava",
        "ratio 0.5",
        "seed 0",
        "search.rounds=5",
    }
    assert record_of(form) == {"pipeline.form": '{"overrides": ["search.rounds=5"]}'}
    assert record_of(Form()) == {}


def test_prefect_s_form_offers_the_parameters() -> None:
    fields = parameter_schema(pipeline).model_dump()["properties"]
    assert fields["methods"]["items"]["enum"] == list(METHODS)
    assert fields["ratios"]["items"]["exclusiveMaximum"] == 1
    assert "those of params.yaml" in fields["seed"]["description"]
    assert list(fields) == ["methods", "ratios", "seed", "overrides", "until"]


def test_the_command_line_has_the_same_fields() -> None:
    line = "--methods owl wanda --ratios 0.3 --seed 1 -S a.b=1 -S c.d=2 --until prune --dry-run"
    given = parse_form("", line.split())
    assert given.form == Form(["owl", "wanda"], [0.3], 1, ["a.b=1", "c.d=2"])
    assert given.until == ["prune"] and given.dry_run
