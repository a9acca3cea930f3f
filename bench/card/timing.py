"""Times of work on a card: graphs in turn, so that clocks and heat fall on all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles
from typing import Any


class Timer:
    """Work that is run again and again: a CUDA graph of it, or on a CPU the work itself."""

    def __init__(self, work: Callable[[], Any], device: str) -> None:
        import torch

        self.work, self.cuda = work, device != "cpu"
        if not self.cuda:
            work()
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles, and finds where tiles begin
            work()
            work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        self.work = graph.replay

    def seconds(self) -> float:
        """How long one run takes, by the card's own clock."""
        import torch

        if not self.cuda:
            started = time.perf_counter()
            self.work()
            return time.perf_counter() - started
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self.work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000


def in_turns(
    works: Mapping[str, Callable[[], Any]], device: str, repetitions: int
) -> dict[str, list[float]]:
    """Seconds of each work, each run `repetitions` times in turn with the others."""
    timers = {name: Timer(work, device) for name, work in works.items()}
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repetitions):
        for name, timer in timers.items():
            times[name].append(timer.seconds())
    return times


def ratio(one: list[float], other: list[float]) -> tuple[float, float, float]:
    """Median and quartiles of one[i] / other[i]."""
    pairs = [a / b for a, b in zip(one, other, strict=True)]
    if len(pairs) < 2:
        return pairs[0], pairs[0], pairs[0]
    low, _, high = quantiles(pairs, n=4, method="inclusive")
    return median(pairs), low, high


def show_profile(work: Callable[[], object], cuda: bool) -> None:
    """Print where the time of two calls goes."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        work()
        work()
        if cuda:
            torch.cuda.synchronize()
    key = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=key, row_limit=20), flush=True)
