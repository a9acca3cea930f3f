"""The GPU's bench runs from end to end, here on the CPU and at a tiny size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TINY = (
    "--device cpu --width 32 --mlp 48 --blocks 2 --vocabulary 64 --small-tower --segments 2 "
    "--length 16 --pairs 4 --rounds 2 --candidates 3 --threads 1 --modes 2"
).split()


def test_every_phase_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "gpu", *TINY, "--folder", str(tmp_path / "bench")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| 2 GB")]
    phases = ["database", "candidates", "sensitivity", "search", "prune", "whole"]
    assert [row[1] for row in rows] == phases
    assert "forward passes" in rows[2][4]
    assert "blocks device, database device" in rows[1][4]
    assert "INCOMPLETE" not in done.stdout and "FAILED" not in done.stdout
    assert not (tmp_path / "bench").exists()
