"""`--dry-run`: which stages would run, why, how long they took; nothing is run or written."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from efficientllava.files import write_json
from flows.pipeline import main
from flows.plan import plan
from flows.server.workspaces import CODE
from tasks.runtime.cost import StageCost
from tests.flows.conftest import change


def files_of(root: Path) -> dict[str, int]:
    return {
        str(path.relative_to(root)): path.stat().st_mtime_ns
        for path in root.rglob("*")
        if path.is_file() and ".dvc/tmp" not in str(path)
    }


def test_nothing_has_run_yet(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_of(toy)
    assert main(["--dry-run", "--until", "evaluate_dense"]) == 0
    said = capsys.readouterr().out
    assert "it has not run yet" in said and "2 of 2 stages" in said and "Nothing was run." in said
    assert files_of(toy) == before
    assert main(["--dry-run", "-S", "search.rouns=5"]) == 2
    assert "did you mean rounds?" in capsys.readouterr().err


def test_other_parameters_are_planned_in_their_workspace(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in CODE:
        (toy / name).mkdir(exist_ok=True)
    assert main(["--dry-run", "-S", "search.rounds=2"]) == 0
    assert "Nothing was run." in capsys.readouterr().out
    assert (toy / ".work" / "runs").is_dir() and not (toy / "artifacts").exists()


def test_what_changed_and_what_may_follow(finished: Path, prefect: None) -> None:
    costs = finished / ".work" / "costs"
    name = "search@magnitude-0.5"
    write_json(costs / f"{name}.json", asdict(StageCost(0.0, 12.34, 20.0, finished=True)))
    states = {stage.stage: stage for stage in plan(finished)}
    assert {stage.state for stage in states.values()} == {"cached"}
    took = states["model"].seconds
    assert took is not None and took >= 0, "the stage measures itself"
    change(finished, "rounds: 3, seed: 0", "rounds: 3, seed: 1")
    planned = {stage.stage: stage for stage in plan(finished)}
    assert planned["model"].state == planned["evaluate_dense"].state == "cached"
    search = planned[name]
    assert (search.state, search.reason) == ("runs", "search.seed was 0, is 1")
    assert search.seconds == 12.34
    prune = planned["prune@magnitude-0.5"]
    assert prune.state == "may run" and name in prune.reason
    (costs / f"{name}.json").write_text("{")
    assert {stage.stage: stage for stage in plan(finished)}[name].seconds is None
