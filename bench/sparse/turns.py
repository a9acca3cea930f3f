"""Contenders run in turns, and the table of their times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from efficientllava.export.speed import load_average, ratio_interval
from efficientllava.sparse.cpu.processor import force_path

Work = Callable[[], Any]
CACHE = 64 << 20
"""Bytes that are read before each call: more than the caches hold."""


@contextmanager
def on_path(name: str | None) -> Iterator[None]:
    """Let our kernels take a path."""
    force_path(name)
    try:
        yield
    finally:
        force_path(None)


def in_turns(
    contenders: dict[str, Work], repetitions: int, cold: bool = True
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Processor seconds and wall seconds of each run of each contender, alternating."""
    flush = torch.ones(CACHE // 8, dtype=torch.int64)
    used: dict[str, list[float]] = {name: [] for name in contenders}
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    for work in contenders.values():
        work(), work()
    for repetition in range(repetitions):
        names = list(contenders)
        for name in names if repetition % 2 else names[::-1]:
            if cold:
                flush.sum()
            started, before = time.perf_counter(), time.process_time()
            contenders[name]()
            used[name].append(time.process_time() - before)
            wall[name].append(time.perf_counter() - started)
    return used, wall


def table(title: str, seconds: Any, against: dict[str, list[list[str]]]) -> None:
    """Print the medians, and how many times faster a contender is than the best of others.

    Args:
        seconds: of `in_turns`.
        against: per contender groups of those it is compared with, the best of each by median.
    """
    used, wall = seconds
    print(f"\n{title}; load average {load_average()}\n")
    print("| | processor ms | quartiles | wall ms | times faster [99 % interval] than |")
    print("|---|---|---|---|---|")
    for name, times in used.items():
        low, middle, high = statistics.quantiles(times, n=4)
        ratios = []
        for rivals in against.get(name, []):
            best = min(rivals, key=lambda rival: statistics.median(used[rival]))
            ratio = statistics.median(used[best]) / middle
            ends = ratio_interval(used[best], times)
            span = f" [{ends['low']:.2f}, {ends['high']:.2f}]" if ends else ""
            ratios.append(f"{ratio:.2f}{span} {best}")
        milliseconds = " – ".join(f"{1e3 * each:.3f}" for each in (low, high))
        print(
            f"| {name} | {1e3 * middle:.3f} | {milliseconds} "
            f"| {1e3 * statistics.median(wall[name]):.3f} | {'; '.join(ratios)} |",
            flush=True,
        )


def on(path: str, work: Work) -> None:
    """Run work on a path."""
    with on_path(path):
        work()
