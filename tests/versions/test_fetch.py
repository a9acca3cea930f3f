"""`models:/NAME@champion` is the pruned folder, byte by byte, and answers questions."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from dvc.repo import Repo
from mlflow.exceptions import MlflowException

from efficientllava.errors import UserError
from efficientllava.export.decoding import Prompt
from efficientllava.versions.artifacts import DvcArtifactRepository
from efficientllava.versions.contents import WORKSPACE, Contents, Pointer, fetch_into
from tests.versions.conftest import ROOT, Registered

MLFLOW_OWN = {"MLmodel", "registered_model_meta"}
FETCH = """
import json, sys, mlflow
local = mlflow.artifacts.download_artifacts("models:/tiny@champion", dst_path=sys.argv[1])
model = mlflow.pyfunc.load_model("models:/tiny@champion")
rows = json.loads(sys.argv[2])
print(json.dumps(model.predict(rows, params={"new_tokens": 5})))
"""


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def pointer(registered: Registered) -> Pointer:
    return Pointer.parse(registered.client.get_model_version("tiny", "1").source)


def test_fetched_by_name_it_is_the_folder_and_answers_as_the_checkpoint(
    registered: Registered, plugin: Path, prompts: list[Prompt], tmp_path: Path
) -> None:
    """In a process of its own, elsewhere: only MLflow's address and the installed plug-in."""
    from efficientllava.versions.flavour import Answers

    image = prompts[0].image
    assert image is not None
    encoded = base64.b64encode(image.read_bytes()).decode()
    rows = [
        {"question": "w1 w2", "image": encoded},
        {"question": "w1 w2", "image": f"data:image/png;base64,{encoded}"},
        {"question": "w3", "image": None},
    ]
    (tmp_path / "out").mkdir()
    result = subprocess.run(
        [sys.executable, "-c", FETCH, str(tmp_path / "out"), json.dumps(rows)],
        env={
            **os.environ,
            "MLFLOW_TRACKING_URI": registered.uri,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{plugin}",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    fetched = files_of(tmp_path / "out")
    assert fetched.keys() - MLFLOW_OWN == files_of(registered.folder).keys()
    assert {name: fetched[name] for name in fetched.keys() - MLFLOW_OWN} == files_of(
        registered.folder
    )
    import pandas as pd

    answers = json.loads(result.stdout.splitlines()[-1])
    direct = Answers(registered.folder).predict(pd.DataFrame(rows), {"new_tokens": 5})
    assert answers == direct and len(direct) == 3 and direct[0] == direct[1] != direct[2]


def test_a_remote_is_asked_for_what_the_cache_lacks(
    registered: Registered, pointer: Pointer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Repo(str(registered.root)) as repo:
        cache = Path(repo.cache.local.path)
    with Repo.init(str(tmp_path), no_scm=True):
        pass
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="not in its cache, and it has no remote"):
        Contents(pointer)
    config = "[core]\n    no_scm = true\n    remote = shared\n['remote \"shared\"']\n"
    (tmp_path / ".dvc" / "config").write_text(config + f"    url = {cache.parent.parent}\n")
    assert fetch_into(str(pointer), tmp_path / "fetched", None) == len(files_of(registered.folder))
    assert files_of(tmp_path / "fetched") == files_of(registered.folder)
    with pytest.raises(UserError, match="is there already"):
        fetch_into(str(pointer), tmp_path / "fetched", None)


def test_where_no_workspace_is_the_way_is_told(
    registered: Registered, pointer: Pointer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MlflowException, match=f"set {WORKSPACE} to its folder"):
        DvcArtifactRepository(str(pointer)).list_artifacts()
    monkeypatch.setenv(WORKSPACE, str(tmp_path))
    with pytest.raises(UserError, match="cannot be opened as a DVC workspace"):
        Contents(pointer)
    monkeypatch.setenv(WORKSPACE, str(registered.root))
    assert DvcArtifactRepository(str(pointer)).list_artifacts()


def test_damaged_bytes_are_not_handed_out(
    registered: Registered, pointer: Pointer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(registered.root)
    contents = Contents(pointer)
    path = contents._paths["deeper/notes.json"]
    path.chmod(0o644)
    path.write_text("[]")
    try:
        with pytest.raises(MlflowException, match=r"deeper/notes.json is damaged"):
            DvcArtifactRepository(str(pointer)).download_artifacts("", str(tmp_path))
        assert not (tmp_path / "deeper" / "notes.json").exists()
    finally:
        path.write_text("{}")
        path.chmod(0o444)


def test_a_folder_is_listed_as_mlflow_lists(
    registered: Registered, pointer: Pointer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(registered.root)
    repository = DvcArtifactRepository(str(pointer))
    names = {item.path: item.is_dir for item in repository.list_artifacts()}
    assert names["config.json"] is False and names["deeper"] is True and "MLmodel" in names
    assert [item.path for item in repository.list_artifacts("deeper")] == ["deeper/notes.json"]
    assert repository.list_artifacts("config.json") == []
    with pytest.raises(MlflowException, match="takes no files"):
        repository.log_artifact("x")


@pytest.mark.parametrize(
    "address",
    ["dvc://artifacts/pruned", "dvc://a?md5=../../etc", "dvc://a?md5=1&md5=2", "file:///a?md5=1"],
)
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(UserError, match="is no address of the form"):
        Pointer.parse(address)


def test_a_pointer_keeps_odd_names() -> None:
    odd = Pointer("artifacts/it's 100 %/a?b#c", "0" * 32)
    assert Pointer.parse(str(odd)) == odd


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"question": "w1", "image": "/etc/passwd"}], "neither base64 nor a data: address"),
        ([{"question": "w1", "image": "https://host/x.png"}], "paths and addresses are not opened"),
        ([{"question": "w1", "image": "AAAA"}], "not a readable image"),
        ([{"question": ["w1"]}], "is list, not a text"),
    ],
)
def test_what_is_no_question_is_told(
    registered: Registered, rows: list[dict], reason: str, answers: Callable
) -> None:
    import pandas as pd

    with pytest.raises(UserError, match=reason):
        answers.predict(pd.DataFrame(rows))


@pytest.fixture(scope="module")
def answers(registered: Registered) -> Callable:
    from efficientllava.versions.flavour import Answers

    return Answers(registered.folder)
