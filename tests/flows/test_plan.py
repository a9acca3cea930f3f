"""`--dry-run`: which stages would run, why, how long they took; nothing is run or written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.pipeline import main
from flows.plan import plan
from flows.runner.stages import keep_seconds
from flows.server.workspaces import CODE
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
    keep_seconds(finished, "search@magnitude-0.5", 12.34)
    assert {stage.state for stage in plan(finished)} == {"cached"}
    assert json.loads((finished / ".work" / "seconds.json").read_text())["model"] >= 0
    change(finished, "rounds: 3, seed: 0", "rounds: 3, seed: 1")
    planned = {stage.stage: stage for stage in plan(finished)}
    assert planned["model"].state == planned["evaluate_dense"].state == "cached"
    search = planned["search@magnitude-0.5"]
    assert (search.state, search.reason) == ("runs", "search.seed was 0, is 1")
    assert search.seconds == 12.3
    prune = planned["prune@magnitude-0.5"]
    assert prune.state == "may run" and "search@magnitude-0.5" in prune.reason
    (finished / ".work" / "seconds.json").write_text("{")
    assert all(stage.seconds is None for stage in plan(finished))
