"""Candidates of a search against bare forward passes of the same tokens, side by side.

    python -m bench candidates                     # the demo model, four times as wide
    python -m bench candidates --width 1024 --mlp 2752 --blocks 4 --vocabulary 32000 \\
        --segments 8 --candidates 32
    python -m bench candidates --workers --segments 16 --candidates 80   # needs the extra `dask`

A candidate: stitch a random policy from the database on disk, then its proxy loss (KL to the
dense model). A bare pass: the language model, the head and -log softmax of the next token, on the
dense weights, by the same code (logits in chunks); nothing is stitched and no KL is formed. The
two alternate, so that whatever else the machine does falls on both. Weights are random.

With --workers: candidates a second with one and with two Dask processes, of one thread each. Both
clusters live at the same time and take turns, round by round. Efficiency is the time of one
process over twice the time of two. It means something only where each process has a core to
itself: the load average is printed.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench import options_of, say_conditions
from bench.random_models import (
    DEMO_TIMES_4,
    LEVELS,
    magnitude_database,
    random_llava,
    size_of,
    size_options,
)

ROUND = 16
"""Candidates of a round."""


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], parents=[size_options(DEMO_TIMES_4)]
    )
    parser.add_argument("--segments", type=int, default=64)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--candidates", type=int, default=160)
    parser.add_argument("--storage", choices=("dense", "compact"), default="dense")
    parser.add_argument("--kl-tokens", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", action="store_true", help="one and two Dask processes")
    arguments = options_of(parser)
    say_conditions(arguments)

    import torch

    from efficientllava.data.proxy import ProxyData
    from efficientllava.models.families import adapter_for

    model = random_llava(size_of(arguments), arguments.length)
    adapter = adapter_for(model)
    segments = torch.randint(5, arguments.vocabulary, (arguments.segments, arguments.length))
    generator = random.Random(0)
    policies = [
        [generator.choice(LEVELS) for _ in adapter.matrices] for _ in range(arguments.candidates)
    ]
    rounds = [policies[first : first + ROUND] for first in range(0, len(policies), ROUND)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        database = magnitude_database(adapter, folder / "database", arguments.storage)
        proxy = ProxyData(segments, None)
        if arguments.workers:
            model.save_pretrained(folder / "model")
            compare_workers(arguments, proxy, adapter, folder, rounds)
        else:
            compare_with_bare(arguments, proxy, adapter, database, rounds)
        size = sum(file.stat().st_size for file in (folder / "database").glob("*.safetensors"))
    print(f"database {size / 2**20:.0f} MiB; load average after {os.getloadavg()[0]:.2f}")


def compare_with_bare(
    arguments: argparse.Namespace, proxy: Any, adapter: Any, database: Any, rounds: list[Any]
) -> None:
    """Candidates in turn with bare forward passes."""
    from efficientllava.allocation.scoring.evaluation import stitched_models, swap_order
    from efficientllava.calibration.proxy_loss import ProxyLoss, mean_loss

    loss = ProxyLoss(adapter, proxy, "kl", "text", arguments.kl_tokens)
    (stitched,) = stitched_models(adapter, database, 1)
    language = adapter.language_model

    def bare() -> None:
        mean_loss(language, loss.head, loss.text, "nll")

    times: dict[str, list[float]] = {"bare": [], "candidate": [], "stitch": []}
    processor = {"bare": 0.0, "candidate": 0.0}
    stitched.stitch(rounds[0][0])
    loss(language)
    bare()
    for round_ in rounds:
        for index in swap_order(round_, adapter.sizes):
            started, used = time.perf_counter(), time.process_time()
            stitched.stitch(round_[index])
            between = time.perf_counter()
            loss(language)
            ended, used_after = time.perf_counter(), time.process_time()
            times["candidate"].append(ended - started)
            times["stitch"].append(between - started)
            processor["candidate"] += used_after - used
            started, used = time.perf_counter(), time.process_time()
            bare()
            times["bare"].append(time.perf_counter() - started)
            processor["bare"] += time.process_time() - used
    ratios = sorted(c / b for c, b in zip(times["candidate"], times["bare"], strict=True))
    quarter = len(ratios) // 4
    print(f"| | median s | all {arguments.candidates} s | processor s |\n|---|---|---|---|")
    for name in ("bare", "candidate"):
        print(
            f"| {name} | {median(times[name]):.4f} | {sum(times[name]):.1f} "
            f"| {processor[name]:.1f} |"
        )
    print(f"| of it stitching | {median(times['stitch']):.4f} | {sum(times['stitch']):.1f} | |")
    print(
        f"ratio of sums {sum(times['candidate']) / sum(times['bare']):.3f}, of processor time "
        f"{processor['candidate'] / processor['bare']:.3f}, median of pairs {median(ratios):.3f} "
        f"(quartiles {ratios[quarter]:.3f}-{ratios[-1 - quarter]:.3f})"
    )


def compare_workers(
    arguments: argparse.Namespace, proxy: Any, adapter: Any, folder: Path, rounds: list[Any]
) -> None:
    """Rounds by one and by two Dask processes in turn; their losses are compared bit for bit."""
    from efficientllava.allocation.scoring.executors import dask_executor
    from efficientllava.allocation.scoring.workers import ProcessEvaluator, Work
    from efficientllava.data.proxy import save_proxy
    from efficientllava.parameters import MachineParameters

    save_proxy(folder / "proxy", proxy, {})
    names = [str(folder / name) for name in ("model", "proxy", "database")]
    work = Work(*names[:2], (names[2],), "kl", "text", arguments.kl_tokens, 1)
    evaluators = {}
    for workers in (1, 2):
        executor = dask_executor(MachineParameters(executor="dask", workers=workers))
        evaluators[workers] = ProcessEvaluator(work, lambda e=executor: e, folder, adapter.sizes)
        list(evaluators[workers].losses(rounds[0][:4]))  # opens the model and its database
    seconds: dict[int, list[float]] = {1: [], 2: []}
    same = True
    for policies in rounds:
        losses = {}
        for workers, evaluator in evaluators.items():
            started = time.perf_counter()
            losses[workers] = dict(evaluator.losses(policies))
            seconds[workers].append(time.perf_counter() - started)
        same &= losses[1] == losses[2]
    for evaluator in evaluators.values():
        evaluator.close()
    print("| processes | median s a round | candidates a second |\n|---|---|---|")
    for workers, times in seconds.items():
        print(f"| {workers} | {median(times):.2f} | {arguments.candidates / sum(times):.2f} |")
    efficiency = median(seconds[1]) / (2 * median(seconds[2]))
    print(f"efficiency {efficiency:.2f}; losses equal bit for bit: {same}")
