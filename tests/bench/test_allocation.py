"""`python -m bench allocation`: what it remembers, and what it counts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from bench.allocation import cells
from bench.allocation.cells import counted, measure, rows_of
from bench.allocation.evopress import STEPS, EvoPress
from bench.allocation.table import table
from efficientllava.allocation.gradient_checkpointing import checkpointed


def arguments(folder: Path, **changes: Any) -> argparse.Namespace:
    given: dict[str, Any] = {
        "model": folder / "model",
        "text": "demo",
        "results": folder / "runs.jsonl",
        "work": folder / "work",
        "ratios": [0.5],
        "draws": [0],
        "methods": ["uniform", "wanda"],
        "segments": 2,
        "length": 4,
        "test_segments": 3,
        "set": [],
        "threads": 1,
    }
    return argparse.Namespace(**{**given, **changes})


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Cells without a model: the methods that are measured, in order."""
    measured: list[str] = []

    def cell(given: Any, method: str, ratio: float, draw: int, test: Any) -> dict[str, Any]:
        measured.append(method)
        loss = {"dense": 1.0, "uniform": 2.0, "wanda": 3.0 + draw}[method]
        cost = {"seconds_allocation": 1.0, "tokens_allocation": 1000}
        return {"nll": loss, "segments": [loss, loss], **cost}

    monkeypatch.setattr(cells, "_cell", cell)
    monkeypatch.setattr(cells, "held_out", lambda given: None)
    monkeypatch.setattr(cells, "_digests", lambda model, text: {"model": str(model), "text": text})
    return measured


def test_a_cell_is_measured_once(told: list[str], tmp_path: Path) -> None:
    measure(arguments(tmp_path))
    measure(arguments(tmp_path, draws=[0, 1]))
    assert told == ["dense", "uniform", "wanda", "uniform", "wanda"]
    measure(arguments(tmp_path, segments=3))
    assert told[5:] == ["dense", "uniform", "wanda"]
    assert "| wanda | +1.5000 ± 0.5000 (-150 %) | 2 | 1 | 1 k |" in table(tmp_path / "runs.jsonl")


def test_a_line_that_a_kill_cut_off_is_measured_again(told: list[str], tmp_path: Path) -> None:
    measure(arguments(tmp_path))
    path = tmp_path / "runs.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-20])
    measure(arguments(tmp_path))
    assert told == ["dense", "uniform", "wanda", "wanda"]
    assert [row["method"] for row in rows_of(path)] == ["dense", "uniform", "wanda"]
    assert json.loads(path.read_text().splitlines()[-1]) == json.loads(whole.splitlines()[-1])


def test_two_texts_in_one_folder_are_two_draws(told: list[str], tmp_path: Path) -> None:
    """A draw that is found in its folder is not drawn again."""
    texts = [arguments(tmp_path, text=text) for text in ("demo", "other")]
    assert len({cells._proxy_folder(text, draw) for text in texts for draw in (0, 1)}) == 4


@pytest.mark.parametrize("again", [False, True])
def test_a_gradient_counts_once_more(again: bool) -> None:
    """Forward and backward: 2; computed again between them: 3."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.linear(x, self.weight).tanh()

    blocks = [Block() for _ in range(3)]
    x = torch.randn(5, 4, requires_grad=True)
    with counted() as passed, checkpointed(blocks if again else []):
        y = x
        for block in blocks:
            y = block(y)
        y.sum().backward()
    assert passed["products"] == (3 if again else 2) * 3 * 5 * 16


def test_evopress_spends_its_tokens() -> None:
    scored: list[int] = []

    def score(policy: tuple[int, ...], chosen: list[int]) -> float:
        scored.append(len(chosen))
        return float(sum(level * (place + 1) for place, level in enumerate(policy)))

    search = EvoPress(score, [[0, 1, 2, 3]], 5, segments=8, length=10)
    best = search.run((2, 2, 2, 2), tokens=1_000, seed=0)
    assert sum(best) == 8 and score(best, []) < score((2, 2, 2, 2), [])
    generation = sum(policies * segments for policies, segments in STEPS)
    assert search.used == 10 * sum(scored) == 10 * (100 // generation) * generation
