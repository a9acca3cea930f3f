"""Candidates per second with one and with two Dask processes, each on a core of its own.

    python -m bench.workers                # needs `pip install 'efficientllava[dask]'`

Both clusters live at the same time and take turns, round by round; every process has one thread.
Efficiency is the time of one process over twice the time of two. It means something only where
each process has a core to itself: the load average is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path
from statistics import median

from bench.random_models import (
    EMBEDDED_TIMES_4,
    LEVELS,
    magnitude_database,
    random_llava,
    size_of,
    size_options,
)
from tasks.runtime.environment import prepare, use_threads


def main() -> None:
    """Measure, compare the losses bit for bit, print."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], parents=[size_options(EMBEDDED_TIMES_4)]
    )
    parser.add_argument("--segments", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    wanted = parser.parse_args()
    prepare()
    use_threads(1)

    import torch

    from bench.machine import machine
    from efficientllava.allocation.workers import ProcessEvaluator, Work
    from efficientllava.data.proxy import ProxyData, save_proxy
    from efficientllava.models.families import adapter_for
    from efficientllava.parameters import SearchParameters
    from tasks.runtime.executors import dask_executor

    torch.set_num_threads(1)
    print(json.dumps({**vars(wanted), "machine": machine(), "load": os.getloadavg()[0]}))
    model = random_llava(size_of(wanted), 256)
    adapter = adapter_for(model)
    generator = random.Random(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model.save_pretrained(folder / "model")
        segments = torch.randint(5, wanted.vocabulary, (wanted.segments, 256))
        save_proxy(folder / "proxy", ProxyData(segments, None), {})
        magnitude_database(adapter, folder / "database", "dense")
        names = [str(folder / name) for name in ("model", "proxy", "database")]
        work = Work(*names, "kl", "text", None, 1)
        evaluators = {}
        for workers in (1, 2):
            parameters = SearchParameters(executor="dask", workers=workers)
            executor = dask_executor(parameters)
            evaluators[workers] = ProcessEvaluator(
                work, lambda e=executor: e, folder, adapter.sizes
            )
            warm = [[generator.choice(LEVELS) for _ in adapter.matrices] for _ in range(4)]
            list(evaluators[workers].scores(warm))
        seconds: dict[int, list[float]] = {1: [], 2: []}
        same = True
        for _ in range(wanted.rounds):
            policies = [[generator.choice(LEVELS) for _ in adapter.matrices] for _ in range(16)]
            found = {}
            for workers, evaluator in evaluators.items():
                started = time.perf_counter()
                found[workers] = dict(evaluator.scores(policies))
                seconds[workers].append(time.perf_counter() - started)
            same &= found[1] == found[2]
        print("| processes | median s a round of 16 | candidates a second |\n|---|---|---|")
        for workers, times in seconds.items():
            print(f"| {workers} | {median(times):.2f} | {16 / median(times):.2f} |")
        efficiency = median(seconds[1]) / (2 * median(seconds[2]))
        print(
            f"efficiency {efficiency:.2f}; losses equal bit for bit: {same}; "
            f"load average after {os.getloadavg()[0]:.2f}"
        )
        for evaluator in evaluators.values():
            evaluator.close()


if __name__ == "__main__":
    main()
