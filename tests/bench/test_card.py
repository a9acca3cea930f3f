"""The list for a card: the command itself, on the CPU, and what it makes of its parts' lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.card import PARTS
from bench.card.conditions import clocks, commit
from bench.card.goals import READERS, Goal
from bench.card.timing import in_turns, ratio

ROOT = Path(__file__).parents[2]


def tiny(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", "card", "--device", "cpu", "--tiny", "--threads", "1"]
    record = ["--record", str(tmp_path / "r.md"), "--folder", str(tmp_path / "bench"), *options]
    return subprocess.run([*command, *record], cwd=ROOT, capture_output=True, text=True)


def test_two_parts_are_run_and_recorded(tmp_path: Path) -> None:
    done = tiny(tmp_path, "--only", "memory", "sparse")
    assert done.returncode == 1, done.stderr  # a goal of the card is not met by a CPU
    recorded = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert recorded in done.stdout
    assert recorded.index("## sparse") < recorded.index("## memory")  # in the list's order
    assert "- device: CPU\n" in recorded and "- commit: " in recorded
    assert "| 48 x 64 | 0.5 | 16 |" in recorded and "| 7B | 1.1 | 12.1 |" in recorded
    assert "parts that failed: none" in recorded
    assert "| sparse | bytes at 50 % | <= 0.57 |" in recorded


@pytest.mark.slow
def test_the_whole_list_runs(tmp_path: Path) -> None:
    done = tiny(tmp_path)
    assert "parts that failed: none" in done.stdout, done.stdout + done.stderr
    for part in PARTS:
        assert f"\n## {part.name}\n" in done.stdout
    # what has no number on a CPU is the peaks of a card and graphs
    missing = [line for line in done.stdout.splitlines() if line.endswith("| not measured |")]
    assert len(missing) == 3, missing


def test_without_a_card_it_is_refused_before_anything_runs(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a card")
    command = [sys.executable, "-m", "bench", "card", "--record", str(tmp_path / "r.md")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert not (tmp_path / "r.md").exists()


def found(part: str, text: str) -> dict[str, Goal]:
    return {goal.name: goal for goal in READERS[part](text.splitlines())}


def test_goals_of_the_kernels() -> None:
    goals = found(
        "obs",
        """| input | matrices | engine s | factor s | reference s | ratio | processor | p |
|---|---|---|---|---|---|---|---|
| 4096 | q, k, v | 0.100 | 0.010 | 6.00 | 60.0 | 3.0 | 5 |
| all | 7 | 0.200 | | 9.00 | 45.0 | 2.0 | |
| matrix | level | same mask | output error | reference's | relative difference |
|---|---|---|---|---|---|
| q | 0.4 | 0.9999100 | 0.00184 | 0.00184 | +1.00e-05 |
| q | 0.6 | 0.9997800 | 0.00942 | 0.00942 | -1.00e-05 |""",
    )
    ratio_goal, masks = goals.values()
    assert (ratio_goal.measured, ratio_goal.met) == ("45x", False)
    assert (masks.measured, masks.met) == ("0.99978", True)


def test_goals_of_the_pipeline() -> None:
    text = """| 80 GB | database | 45.0 | 61.2 (63.0) | 36.1 GB; a block 1.20 s |
| 80 GB | search | 290.0 | 75.0 (81.0) | 10 rounds |
| 80 GB | prune | 30.0 | 20.0 (22.0) | sparsity 0.5 |
| 80 GB | whole | 365.0 | | database + search + prune |
| 22 GB | database | 95.0 | 14.0 (15.0) | 36.1 GB |
| 22 GB | search | 3.0 | 22.5 (23.0) | FAILED: OutOfMemoryError |"""
    goals = found("gpu", text)
    assert goals["7B, whole"].measured == "365 s" and goals["7B, whole"].met
    assert goals["7B, peak in the mode of 80 GB"].measured == "75 GB"
    assert goals["7B, peak in the mode of 22 GB"].met is False
    broken = found("gpu", text.replace("10 rounds", "FAILED: ValueError: x"))
    assert broken["7B, search"].met is None


def test_goals_of_sparse_products_and_tests() -> None:
    goals = found(
        "sparse",
        """| 4096 x 4096 | 0.3 | 1 | 11.0 | 10.0 | 1.10 (1.09-1.11) | 2500 | 0.763 |
| 4096 x 4096 | 0.5 | 1 | 11.0 | 8.0 | 1.38 (1.37-1.39) | 2500 | 0.563 |
| 11008 x 4096 | 0.5 | 1 | 30.0 | 24.0 | 1.25 (1.2-1.3) | 2100 | 0.563 |
| 11008 x 4096 | 0.5 | 640 | 90.0 | 120.0 | 0.75 (0.74-0.76) | 500 | 0.563 |""",
    )
    one, stored, prefill = goals.values()
    assert (one.measured, one.met, stored.met) == ("1.25x", False, True)
    assert (prefill.measured, prefill.met) == ("0.75x", False)
    (tests,) = found("tests", "x\n2 failed, 30 passed, 1 skipped in 9.1s").values()
    assert tests.met is False
    (tests,) = found("tests", "37 skipped in 9.1s").values()
    assert tests.met is None
    (tests,) = found("tests", "===== 30 passed, 1 skipped in 9.1s =====").values()
    assert tests.met is True


def test_ratios_are_of_runs_in_turn() -> None:
    calls: list[str] = []
    works = {"dense": lambda: calls.append("d"), "sparse": lambda: calls.append("s")}
    times = in_turns(works, "cpu", 3)
    assert "".join(calls) == "ds" + "ds" * 3
    assert all(len(each) == 3 for each in times.values())
    assert ratio([2.0, 4.0, 9.0], [1.0, 2.0, 3.0]) == (2.0, 2.0, 2.5)


def test_conditions_name_the_commit_and_no_clocks_of_a_cpu() -> None:
    assert len(commit().rstrip("+")) == 12
    assert clocks("cpu") == {}
