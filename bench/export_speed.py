"""Dense against pruned latency of one decoder size: random weights, random masks, real graphs.

    python -m bench export_speed --width 1024 --mlp 2752 --blocks 12 --ratios 0.5 0.7

Every runtime runs the dense graph and all pruned ones in turns; the table gives medians and
dense / pruned with its interval (docs/export.md). Nothing is trained and nothing is
kept. Zeros at random are an assumption: a real model's zeros may lie otherwise.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from bench import options_of, say_conditions
from bench.random_models import DecoderSize, random_llava, size_of, size_options
from efficientllava.export.graphs.writing import export_graphs
from efficientllava.export.measure import timed_calls
from efficientllava.export.runtimes import open_graph, takes_graphs, unavailable, version
from efficientllava.export.speed import (
    clock_of,
    interleaved,
    load_average,
    machine,
    milliseconds,
    ratio_interval,
    seconds_of,
    warn_of_load,
)
from efficientllava.models.families import adapter_for
from efficientllava.registry import RUNTIMES
from efficientllava.report.speedup import Speedup


def main() -> None:
    """Export at every ratio, time in turns, print."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], parents=[size_options(DecoderSize(512, 1376, 4, 512))]
    )
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.7])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=20)
    wanted = options_of(parser)
    say_conditions(wanted)

    with tempfile.TemporaryDirectory() as temporary:
        folders = {}
        for ratio in [0.0, *wanted.ratios]:
            model = random_llava(size_of(wanted), wanted.context)
            for matrix in adapter_for(model).matrices:
                matrix.weight.mul_(torch.rand(matrix.weight.shape) >= ratio)
            folders[ratio] = Path(temporary) / f"{ratio:g}"
            folders[ratio].mkdir()
            export_graphs(model, folders[ratio], wanted.prompt_tokens, wanted.context)
            del model
        print("| runtime | graph | ratio | ms | fastest ms | dense / this | share |")
        print("|---|---|---|---|---|---|---|")
        load = 0.0
        for runtime in filter(takes_graphs, RUNTIMES):
            if (reason := unavailable(runtime)) is not None:
                print(f"| {runtime} | cannot be used here: {reason} |")
                continue
            for name in ("prefill", "decode"):
                graphs = {
                    str(ratio): open_graph(runtime, folder / f"{name}.onnx", wanted.threads)
                    for ratio, folder in folders.items()
                }
                clock = clock_of(wanted.threads)
                runs = interleaved(timed_calls(name, graphs), wanted.repetitions)
                seconds = {ratio: seconds_of(times, clock) for ratio, times in runs.items()}
                dense = milliseconds(seconds["0.0"])["ms"]
                for ratio, times in seconds.items():
                    row, share = milliseconds(times), graphs[ratio].engine_share
                    ends = ratio_interval(seconds["0.0"], times) or {}
                    speedup = Speedup(dense / row["ms"], **ends)
                    print(
                        f"| {runtime} {version(runtime)} | {name} | {ratio} | {row['ms']} "
                        f"| {row['fastest_ms']} | {speedup if ratio != '0.0' else '–'} "
                        f"| {'' if share is None else share} |",
                        flush=True,
                    )
                load = max(load, load_average())
        print(f"load average at most: {load}")
        warn_of_load(load, machine()["cores"])
