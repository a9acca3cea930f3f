"""Candidates of a search against bare forward passes of the same tokens, side by side.

    python -m bench.candidates                     # the embedded model, four times as wide
    python -m bench.candidates --width 1024 --mlp 2752 --blocks 4 --vocabulary 32000 \\
        --segments 8 --candidates 32

A candidate: stitch a random policy from the database on disk, then its proxy loss (KL to the
dense model). A bare pass: the language model, the head and -log softmax of the next token, on the
dense weights, by the same code (logits in chunks); nothing is stitched and no KL is formed. The
two alternate, so that whatever else the machine does falls on both. Weights are random.
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
    """Measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], parents=[size_options(EMBEDDED_TIMES_4)]
    )
    parser.add_argument("--segments", type=int, default=64)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--candidates", type=int, default=160)
    parser.add_argument("--storage", choices=("dense", "compact"), default="dense")
    parser.add_argument("--kl-tokens", type=int)
    parser.add_argument("--threads", type=int, default=1)
    wanted = parser.parse_args()
    prepare()
    use_threads(wanted.threads)

    import torch

    from bench.machine import machine
    from efficientllava.allocation.evaluation import stitched_models, swap_order
    from efficientllava.calibration.proxy_loss import ProxyLoss, mean_loss
    from efficientllava.data.proxy import ProxyData
    from efficientllava.models.families import adapter_for

    torch.set_num_threads(wanted.threads)
    print(json.dumps({**vars(wanted), "machine": machine(), "load": os.getloadavg()[0]}))
    model = random_llava(size_of(wanted), wanted.length)
    adapter = adapter_for(model)
    segments = torch.randint(5, wanted.vocabulary, (wanted.segments, wanted.length))
    loss = ProxyLoss(adapter, ProxyData(segments, None), "kl", "text", wanted.kl_tokens)
    generator = random.Random(0)
    policies = [
        [generator.choice(LEVELS) for _ in adapter.matrices] for _ in range(wanted.candidates)
    ]
    with tempfile.TemporaryDirectory() as temporary:
        database = magnitude_database(adapter, Path(temporary), wanted.storage)
        size = sum(file.stat().st_size for file in Path(temporary).glob("*.safetensors"))
        (stitched,) = stitched_models(adapter, database, 1)
        language = adapter.language_model

        def bare() -> None:
            mean_loss(language, loss.head, loss.text, "nll")

        times: dict[str, list[float]] = {"bare": [], "candidate": [], "stitch": []}
        processor = {"bare": 0.0, "candidate": 0.0}
        stitched.stitch(policies[0])
        loss(language)
        bare()
        # sixteen at a time, a round of the search
        for first in range(0, len(policies), 16):
            round_ = policies[first : first + 16]
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
    print(f"| | median s | all {wanted.candidates} s | processor s |\n|---|---|---|---|")
    for name in ("bare", "candidate"):
        print(
            f"| {name} | {median(times[name]):.4f} | {sum(times[name]):.1f} "
            f"| {processor[name]:.1f} |"
        )
    print(f"| of it stitching | {median(times['stitch']):.4f} | {sum(times['stitch']):.1f} | |")
    print(
        f"ratio of sums {sum(times['candidate']) / sum(times['bare']):.3f}, of processor time "
        f"{processor['candidate'] / processor['bare']:.3f}, median of pairs {median(ratios):.3f} "
        f"(quartiles {ratios[quarter]:.3f}-{ratios[-1 - quarter]:.3f}); database "
        f"{size / 2**20:.0f} MiB; load average after {os.getloadavg()[0]:.2f}"
    )


if __name__ == "__main__":
    main()
