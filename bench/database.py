"""The database of OBS solutions, built on the CPU: where its time goes.

    python -m bench database                       # 1024 wide, MLP 2752, two blocks, 5 levels
    python -m bench database --width 4096 --mlp 11008 --blocks 1 --segments 64 --repetitions 1

Each storage is built in turn, with the compiled kernel and (with --eager) the eager one. Files are
written beside the next block's work: *writing* is the writer's own time, and only what the build
had to wait for is in *all*.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from bench import options_of, say_conditions
from bench.random_models import LEVELS, DecoderSize, random_llava, size_of, size_options

PHASES = {
    "solve_group": "OBS",
    "relative_errors": "errors",
    "_write_block": "writing",
}
"""Functions of `pruning.database` whose time is taken."""


@contextmanager
def clocked(seconds: dict[str, float]) -> Iterator[None]:
    """Add the times of a build's phases to `seconds`."""
    from efficientllava.database import build as database

    def timed(work: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return work(*arguments)
            finally:
                seconds[phase] += time.perf_counter() - started

        return run

    with ExitStack() as stack:
        for name, phase in PHASES.items():
            stack.enter_context(patch.object(database, name, timed(getattr(database, name), phase)))
        yield


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        parents=[size_options(DecoderSize(1024, 2752, 2, 2560))],
    )
    parser.add_argument("--segments", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--eager", action="store_true", help="the eager kernel as well")
    arguments = options_of(parser)
    say_conditions(arguments)

    import torch

    from efficientllava.data.proxy import ProxyData
    from efficientllava.database.build import build_database
    from efficientllava.models.families import adapter_for
    from efficientllava.parameters import ObsParameters

    adapter = adapter_for(random_llava(size_of(arguments), arguments.length))
    segments = torch.randint(5, arguments.vocabulary, (arguments.segments, arguments.length))
    proxy = ProxyData(segments, None)
    ways = [
        (kernel, storage)
        for kernel in ("compiled", *(["eager"] if arguments.eager else []))
        for storage in ("dense", "compact")
    ]
    taken: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    sizes: dict[tuple[str, str], int] = {}
    for _ in range(arguments.repetitions):
        for kernel, storage in ways:
            parameters = ObsParameters(kernel=kernel, storage=storage)
            seconds: dict[str, float] = defaultdict(float)
            with tempfile.TemporaryDirectory() as temporary, clocked(seconds):
                folder = Path(temporary) / "database"
                started = time.perf_counter()
                build_database(
                    adapter, proxy, LEVELS, parameters, folder, Path(temporary) / "work", {}
                )
                seconds["all"] = time.perf_counter() - started
                sizes[kernel, storage] = sum(
                    file.stat().st_size for file in folder.glob("*.safetensors")
                )
            taken[kernel, storage].append(seconds)
    print("| kernel | storage | all s | OBS s | errors s | rest s | writing s | MB |")
    print("|---|---|---|---|---|---|---|---|")
    for way in ways:
        best = {
            phase: median(run[phase] for run in taken[way]) for phase in ("all", *PHASES.values())
        }
        rest = best["all"] - best["OBS"] - best["errors"]
        print(
            f"| {' | '.join(way)} | {best['all']:.2f} | {best['OBS']:.2f} | {best['errors']:.2f} "
            f"| {rest:.2f} | {best['writing']:.2f} | {sizes[way] / 1e6:.0f} |"
        )
    print(f"load average after: {os.getloadavg()[0]:.2f}")
