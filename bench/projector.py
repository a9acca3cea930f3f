"""One step of the projector with and without gradient checkpointing: time and peak memory.

    python -m bench projector              # three sizes, about a minute on one core
    python -m bench projector --device cuda --dtype bfloat16 --width 4096 --mlp 11008 \\
        --blocks 32 --vocabulary 32064 --length 640 --pairs 32

Each row is a fresh process. Its peak is the highest resident set (on CUDA: of torch's allocator)
in a step less what was there before it: weights and inputs are not counted, the projector's
gradients are. *By formula* is that of `ProjectorEvolution`. Both processes must end with the same
projector, bit for bit. Weights and pixels are random.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench import options_of, say_conditions
from bench.random_models import (
    ANSWER,
    DecoderSize,
    random_llava,
    random_pairs,
    size_of,
    size_options,
)

SIZES = (
    DecoderSize(160, 384, 6, 2560),
    DecoderSize(512, 1376, 8, 8000),
    DecoderSize(1024, 2752, 8, 8000),
)
MEBIBYTE = 2**20


class Peak:
    """The highest memory in a block, in bytes beyond what was held when it began."""

    def __init__(self, device: str) -> None:
        self.device, self.bytes = device, 0

    def __enter__(self) -> Peak:
        import torch

        self.ended = threading.Event()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            self.before = self.highest = resident()
            self.watcher = threading.Thread(target=self._watch)
            self.watcher.start()
        return self

    def _watch(self) -> None:
        while not self.ended.wait(0.001):
            self.highest = max(self.highest, resident())

    def __exit__(self, *_: object) -> None:
        import torch

        self.ended.set()
        if self.device == "cuda":
            self.bytes = torch.cuda.max_memory_allocated() - self.before
        else:
            self.watcher.join()
            self.bytes = self.highest - self.before


def resident() -> int:
    """This process' resident set, in bytes."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Steps of one size, in this process."""
    import hashlib
    from random import Random

    import torch

    from efficientllava.allocation.search.projector import ProjectorEvolution
    from efficientllava.calibration.proxy_loss import Distribution
    from efficientllava.models.families import adapter_for
    from efficientllava.parameters import SearchParameters

    dtype = getattr(torch, arguments.dtype)
    torch.set_default_dtype(dtype)
    with torch.device(arguments.device):
        adapter = adapter_for(random_llava(size_of(arguments), arguments.length))
        pairs = random_pairs(arguments.vocabulary, arguments.pairs, arguments.length)
        logits = torch.randn(arguments.pairs * ANSWER, arguments.vocabulary, dtype=torch.float32)
    evolution = ProjectorEvolution(
        adapter,
        pairs,
        lambda candidate: None,
        Distribution.of(logits.log_softmax(dim=1)),
        SearchParameters(projector_steps=1, projector_batch=arguments.pairs),
        arguments.checkpointing,
    )
    evolution.training = list(range(arguments.pairs))
    evolution.held_out = evolution.training[:1]
    seconds, peaks = [], []
    # the first step is not counted: libraries make their buffers in it
    for repetition in range(1 + arguments.repetitions):
        with Peak(arguments.device) as peak:
            started = time.perf_counter()
            evolution.step([1.0], Random(repetition))
            if arguments.device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        peaks.append(peak.bytes)
    digest = hashlib.sha256()
    for tensor in adapter.projector.state_dict().values():
        digest.update(tensor.float().cpu().numpy().tobytes())
    return {"seconds": seconds[1:], "peak": max(peaks[1:]), "digest": digest.hexdigest()}


def by_formula(arguments: argparse.Namespace, checkpointing: bool) -> int:
    """The memory of a step in bytes, after `ProjectorEvolution`."""
    number = 4 if arguments.dtype == "float32" else 2
    tokens = arguments.pairs * arguments.length
    block = (6 * arguments.width + 3 * arguments.mlp) * number
    if checkpointing:
        return tokens * (arguments.blocks * arguments.width * number + block)
    return tokens * arguments.blocks * block


def main() -> None:
    """Measure every size in fresh processes, print."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], parents=[size_options(SIZES[0])]
    )
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--alone", action="store_true", help="one row, as JSON, in this process")
    parser.add_argument("--checkpointing", action="store_true", help="of --alone")
    arguments = options_of(parser)
    if arguments.alone:
        print(json.dumps(measure(arguments)))
        return
    say_conditions(arguments)
    chosen = any(option.startswith("--width") for option in sys.argv)
    print(
        "| width / MLP / blocks | checkpointing | s a step | ratio | peak MiB | by formula MiB "
        "| peak ratio |\n|---|---|---|---|---|---|---|"
    )
    for size in (size_of(arguments),) if chosen else SIZES:
        vars(arguments).update(vars(size))
        rows = [_alone(arguments, checkpointing) for checkpointing in (False, True)]
        plain = rows[0]
        if plain["digest"] != rows[1]["digest"]:
            sys.exit("the projectors differ")
        for checkpointing, row in enumerate(rows):
            print(
                f"| {size.width} / {size.mlp} / {size.blocks} | {'on' if checkpointing else 'off'} "
                f"| {median(row['seconds']):.3f} "
                f"| {median(row['seconds']) / median(plain['seconds']):.2f} "
                f"| {row['peak'] / MEBIBYTE:.0f} "
                f"| {by_formula(arguments, bool(checkpointing)) / MEBIBYTE:.0f} "
                f"| {row['peak'] / plain['peak']:.2f} |",
                flush=True,
            )
    print(f"projectors equal bit for bit; load average after {os.getloadavg()[0]:.2f}")


def _alone(arguments: argparse.Namespace, checkpointing: bool) -> dict[str, Any]:
    names = ("width", "mlp", "blocks", "vocabulary", "pairs", "length", "device", "dtype")
    command = [sys.executable, "-m", "bench", "projector", "--alone"]
    for name in (*names, "repetitions", "threads"):
        command += [f"--{name}", str(getattr(arguments, name))]
    command += ["--checkpointing"] if checkpointing else []
    # what is freed goes back at once, so that the next step's memory is seen
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "1048576",
        "MALLOC_TRIM_THRESHOLD_": "1048576",
    }
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row
