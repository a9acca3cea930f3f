"""What the plots show, and that the same records give the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.markers import MarkerStyle
from PIL import Image

from efficientllava.errors import UserError
from efficientllava.files import read_json
from efficientllava.report.comparison import read_rows
from efficientllava.report.latency.accuracy_latency import accuracy_latency_plot
from efficientllava.report.page import read_history
from efficientllava.report.plots import (
    convergence_plot,
    grid_of,
    place_of,
    policy_plot,
    sparsity_plot,
    trajectory,
)
from efficientllava.report.theme import DARK, LIGHT, METHODS, marker, readable_on


def test_a_matrix_has_its_place_in_the_grid() -> None:
    assert place_of("model.language_model.layers.12.mlp.gate_up_proj") == (12, "gate_up_proj")
    assert place_of("layers.2.mlp.experts.31.down_proj") == (2, "experts.down_proj")
    with pytest.raises(UserError, match="no number of a decoder block"):
        place_of("model.projector.linear")
    blocks, kinds, grid = grid_of(
        {
            "layers.1.mlp.down_proj": 0.25,
            "layers.1.attn.q_proj": 0.5,
            "layers.0.mlp.down_proj": None,
            "layers.10.attn.q_proj": 1.0,
        }
    )
    assert blocks == [0, 1, 10] and kinds == ["q_proj", "down_proj"]
    np.testing.assert_array_equal(grid, [[np.nan, np.nan], [0.5, 0.25], [1.0, np.nan]])


def test_experts_are_shown_by_their_mean() -> None:
    names = {f"layers.0.mlp.experts.{number}.down_proj": 0.25 * number for number in range(4)}
    values = names | {"layers.0.mlp.shared_expert.down_proj": 0.75}
    blocks, kinds, grid = grid_of(values)
    assert kinds == ["down_proj", "experts.down_proj"]
    np.testing.assert_array_equal(grid, [[0.75, 0.375]])


def test_trajectory_follows_the_search(artifacts: Path) -> None:
    history = read_history(artifacts / "search" / "efficientllava-0.5" / "history.jsonl")
    rounds, best, mean, uniform = trajectory(history)
    assert rounds == [1, 2, 3]
    # measured again under the moved projector, the best may rise
    assert best["risk"] == [0.40, 0.43, 0.30]
    assert mean["risk"] == pytest.approx([1.31 / 3, 0.46, 0.30])
    assert uniform is not None and [row["risk"] for row in uniform] == [0.50, 0.48, 0.48]


def test_the_best_is_what_the_method_calls_the_best() -> None:
    """`efficientllava_plus` decides by the loss, and records the risk."""
    rows = [
        {"round": 1, "policy": [0.5], "risk": 0.1, "loss": 0.3, "complexity": 0.0},
        {"round": 2, "policy": [0.4], "risk": 0.2, "loss": 0.2, "complexity": 0.0},
    ]
    assert trajectory(rows)[1]["loss"] == [0.3, 0.3]
    assert trajectory([row | {"decided_by": "loss"} for row in rows])[1]["loss"] == [0.3, 0.2]


def test_every_plot_is_drawn_the_same_each_time(artifacts: Path, tmp_path: Path) -> None:
    history = read_history(artifacts / "search" / "efficientllava-0.5" / "history.jsonl")
    policy = read_json(artifacts / "search" / "efficientllava-0.5" / "policy.json")["policy"]
    record = read_json(artifacts / "pruned" / "sparsegpt-0.5" / "pruning.json")
    rows = read_rows(artifacts, ["sparsegpt", "efficientllava"], [0.5, 0.7])
    for name, draw in {
        "convergence": lambda path: convergence_plot(history, path),
        "policy": lambda path: policy_plot(policy, path, 0.5),
        "sparsity": lambda path: sparsity_plot(record, path, theme=DARK),
        "latency": lambda path: accuracy_latency_plot(rows, path),
    }.items():
        first, second = tmp_path / f"{name}.png", tmp_path / f"{name}-again.png"
        draw(first)
        draw(second)
        assert first.read_bytes() == second.read_bytes()
        colours = np.asarray(Image.open(first).convert("RGB")).reshape(-1, 3)
        assert len(np.unique(colours, axis=0)) > 50, f"{name} is empty"


def test_uniform_and_errorless_records_can_be_drawn(artifacts: Path, tmp_path: Path) -> None:
    """Equal levels leave no range of colours; magnitude pruning may know no errors."""
    record = read_json(artifacts / "pruned" / "sparsegpt-0.5" / "pruning.json")
    for row in record["matrices"]:
        row["relative_error"] = None
    sparsity_plot(record, tmp_path / "sparsity.png")
    policy_plot({row["name"]: 0.5 for row in record["matrices"]}, tmp_path / "policy.png")
    assert Image.open(tmp_path / "sparsity.png").size[0] > 1000


def test_nothing_to_draw_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="history is empty"):
        convergence_plot([], tmp_path / "convergence.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_text_on_a_heat_map_has_contrast(theme) -> None:  # type: ignore[no-untyped-def]
    """WCAG contrast of at least 4.5 between every cell and the number on it."""

    def luminance(colour: tuple[float, ...]) -> float:
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        return float(np.dot(parts, [0.2126, 0.7152, 0.0722]))

    for ramp in (theme.sequential(), theme.diverging()):
        for share in np.linspace(0, 1, 41):
            cell = ramp(share)
            text = tuple(int(readable_on(cell)[i : i + 2], 16) / 255 for i in (1, 3, 5))
            low, high = sorted((luminance(cell), luminance(text)))
            assert (high + 0.05) / (low + 0.05) >= 4.5


def test_every_method_has_a_marker_of_its_own() -> None:
    markers = {marker(method) for method in METHODS}
    assert len(markers) == len(METHODS)
    assert all(MarkerStyle(each).is_filled() for each in markers), "others are drawn without colour"
    assert marker("a method of tomorrow") == "o"
