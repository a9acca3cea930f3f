"""The interval of a speed-up: how often it holds the true ratio, on noise of every kind."""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efficientllava.export import speed
from efficientllava.export.decoding import Prompt
from efficientllava.export.model import export_model
from efficientllava.export.speed import COVERAGE, milliseconds_interval, ratio_interval
from tests.export.conftest import PARAMETERS

Noise = Callable[[np.random.Generator, int], np.ndarray]


def bursts(generator: np.random.Generator, runs: int) -> np.ndarray:
    """Now and then another program takes the core: every third run up to twenty times slower."""
    slow = generator.random(runs) < 1 / 3
    return np.where(slow, generator.uniform(1, 20, runs), generator.uniform(1, 1.02, runs))


NOISE: dict[str, Noise] = {
    "normal": lambda generator, runs: 1 + 0.1 * np.abs(generator.standard_normal(runs)),
    "heavy": lambda generator, runs: 1 + generator.pareto(1.0, runs),
    "bursts": bursts,
}


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("runs", [8, 10, 30])
def test_a_graph_that_does_not_differ_is_seldom_called_different(noise: str, runs: int) -> None:
    """At most 1 - COVERAGE of the time; 3 standard errors above are allowed."""
    generator, tries, wrong = np.random.default_rng(runs), 3000, 0
    for _ in range(tries):
        dense, pruned = (NOISE[noise](generator, runs).tolist() for _ in range(2))
        ends = ratio_interval(dense, pruned)
        assert ends is not None and ends["low"] <= ends["high"]
        wrong += not ends["low"] <= 1 <= ends["high"]
    allowed = 1 - COVERAGE
    assert wrong / tries <= allowed + 3 * (allowed * COVERAGE / tries) ** 0.5


@pytest.mark.parametrize("ratio", [0.8, 1.25])
def test_a_real_difference_is_seen(ratio: float) -> None:
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(200):
        dense = (ratio * (1 + 0.05 * np.abs(generator.standard_normal(30)))).tolist()
        ends = ratio_interval(dense, (1 + 0.05 * np.abs(generator.standard_normal(30))).tolist())
        assert ends is not None
        found += (ends["low"] > 1) if ratio > 1 else (ends["high"] < 1)
    assert found == 200


def test_ends_are_order_statistics_of_the_pairs() -> None:
    """Of 30 pairs the 8th from either end: 7 or fewer heads in 30 throws are rarer than 0.5 %."""
    assert (
        sum(comb(30, k) for k in range(8)) / 2**30
        < 0.005
        < sum(comb(30, k) for k in range(9)) / 2**30
    )
    pruned = [1.0] * 30
    dense = [1 + index / 100 for index in range(30)]
    assert ratio_interval(dense, pruned) == {"low": 1.07, "high": 1.22}
    # 6 or fewer: half of what is left over for each of two medians
    assert milliseconds_interval(dense) == [1060.0, 1230.0]


def test_the_ratio_of_medians_lies_inside() -> None:
    dense, pruned = [1.0] * 10 + [9.0] * 11, [1.0] * 11 + [9.0] * 10
    ends = ratio_interval(dense, pruned)
    assert ends == {"low": 1.0, "high": 9.0}


@pytest.mark.parametrize("runs", [3, 5, 7])
def test_too_few_runs_give_no_interval(runs: int) -> None:
    assert ratio_interval([2.0] * runs, [1.0] * runs) is None


def test_a_busy_machine_is_warned_of(
    checkpoints: dict[str, Path],
    prompts: list[Prompt],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    quick = PARAMETERS.model_copy(update={"runtimes": ("onnxruntime",), "repetitions": 8})
    monkeypatch.setattr(speed.os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    monkeypatch.setattr(speed.os, "cpu_count", lambda: 4)
    arguments = (checkpoints["pruned"], checkpoints["dense"], prompts[:1])
    with caplog.at_level(logging.WARNING):
        record = export_model(*arguments, tmp_path / "export", quick)
    assert "load average reached 99 on 4 cores while graphs were timed" in caplog.text
    assert record["warning"].startswith("the load average reached 99 on 4 cores")
    assert record["machine"]["load_average_while_timing"] == 99.0
    assert record["speedup_coverage"] == COVERAGE
    row = record["runtimes"]["onnxruntime"]
    for name in ("vision", "prefill", "decode"):
        ends = row[f"{name}_speedup_interval"]
        assert ends["low"] - 1e-4 <= row[f"{name}_speedup"] <= ends["high"] + 1e-4
        # the only runtime is the best
        assert row[f"{name}_speedup_over_best_dense_interval"] == ends
        low, high = row["pruned"][f"{name}_interval_ms"] or (0, np.inf)
        assert low <= row["pruned"][f"{name}_ms"] <= high
    caplog.clear()
    assert speed.warn_of_load(4.0, 4) is None and not caplog.records


@pytest.mark.parametrize("noise", NOISE)
def test_ending_when_the_interval_is_narrow_keeps_the_coverage(
    noise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end depends on the runs, but a model that does not differ is seldom called different."""
    generator, tries, wrong, ended = np.random.default_rng(1), 200, 0, set()

    def drawn(calls: dict[str, speed.Call], repetitions: int, warm_up: int = 3) -> speed.Runs:
        return {
            name: [speed.Run(time, time) for time in NOISE[noise](generator, repetitions).tolist()]
            for name in calls
        }

    monkeypatch.setattr(speed, "interleaved", drawn)
    calls: dict[str, speed.Call] = {"dense": int, "pruned": int}
    for _ in range(tries):
        runs = speed.timed_until_narrow(calls, 30, "cpu")
        seconds = [speed.seconds_of(runs[name], "cpu") for name in calls]
        ends = ratio_interval(*seconds, speed.LOOK_COVERAGE)
        assert ends is not None
        wrong += not ends["low"] <= 1 <= ends["high"]
        ended.add(len(runs["dense"]))
    assert wrong / tries <= 0.01 + 3 * (0.01 * 0.99 / tries) ** 0.5
    assert ended <= {30, 60, 120, 240}
    if noise != "bursts":
        assert (240 in ended) == (noise == "heavy"), "bounded, and no longer than it needs"


def test_a_minute_ends_the_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "MOST_SECONDS", -1.0)
    runs = speed.timed_until_narrow({"dense": int, "pruned": int}, 3, "wall")
    assert len(runs["dense"]) == 3


def test_wide_intervals_are_named(caplog: pytest.LogCaptureFixture) -> None:
    rows = {
        "sparse": {"prefill_narrow": True, "decode_narrow": False, "decode_runs": 240},
        "onnxruntime": {"prefill_narrow": True, "decode_narrow": True},
    }
    told = speed.wide_intervals(rows)
    assert told is not None and told.endswith(": decode in sparse (after 240 runs)")
    assert told in caplog.text
    del rows["sparse"]
    assert speed.wide_intervals(rows) is None


def test_only_times_of_one_precision_are_compared() -> None:
    def row(precision: str, dense: float, pruned: float, **more: float) -> dict[str, Any]:
        variants = {"dense": dense, "pruned": pruned, **more}
        measured = {
            name: {"decode_ms": ms, "decode_interval_ms": [ms, ms]} for name, ms in variants.items()
        }
        return {"precision": precision, "decode_speedup": dense / pruned, **measured} | {
            "decode_speedup_interval": {"low": 1.0, "high": 1.1},
            "decode_speedup_over_dense_kernel_interval": {"low": 1.5, "high": 1.6},
        }

    rows = {
        "sparse": row("bfloat16", 4.0, 2.0, dense_kernel=3.0),
        "openvino": row("bfloat16", 5.0, 5.0),
        "onnxruntime": row("float32", 1.0, 1.0),
    }
    speed.compare_with_best_dense(rows)
    assert rows["sparse"]["decode_best_dense"] == "sparse, dense_kernel"
    assert rows["sparse"]["decode_speedup_over_best_dense"] == 1.5
    # in turns with it: the interval of the pairs
    assert rows["sparse"]["decode_speedup_over_best_dense_interval"] == {"low": 1.5, "high": 1.6}
    assert rows["openvino"]["decode_speedup_over_best_dense_interval"] == {"low": 0.6, "high": 0.6}
    assert rows["onnxruntime"]["decode_best_dense"] == "onnxruntime"
