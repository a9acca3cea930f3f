"""A short run of `tests.sparse.fuzz`; the long one is its command."""

from __future__ import annotations

from pathlib import Path

import pytest

from efficientllava.sparse import pack_checkpoint
from tests.sparse.fuzz import is_bad, run
from tests.sparse.packed import tiny_pruned


@pytest.mark.parametrize(
    ("name", "seeds"),
    [
        ("llama", range(40)),
        ("qwen3_vl_moe", range(40, 56)),
        pytest.param("llama", range(40, 1000), marks=pytest.mark.slow),
        pytest.param("qwen3_vl_moe", range(1000, 1400), marks=pytest.mark.slow),
    ],
)
def test_damaged_checkpoints_are_refused_or_answer_the_same(
    name: str, seeds: range, tmp_path: Path
) -> None:
    pack_checkpoint(tiny_pruned(name, tmp_path / "dense", shard=20_000), tmp_path / "packed")
    outcomes = run(tmp_path / "packed", seeds, tmp_path)
    assert not [found for name, found in outcomes.items() if is_bad(name)]
    assert sum(map(len, outcomes.values())) == len(seeds)
    ours = {name for name in outcomes if name.startswith("ours")}
    assert ours <= {"ours: UserError", "ours: same answer"}, "errors are such that a user reads"
    assert len(outcomes["ours: UserError"]) > len(seeds) / 4
