"""Sparse kernels against torch, OpenVINO, ONNX Runtime, DeepSparse and our own dense kernel.

    python -m bench sparse                                       # all parts
    python -m bench sparse --parts matrix --shapes 11008x4096 --sparsities 0.3 0.5 0.7
    python -m bench sparse --parts generate --models 1.1b --packages FOLDER
    python -m bench sparse --parts experts                       # a layer of a mixture: 4 GB
    python -m bench sparse --device cuda                         # is python -m bench card.sparse
    pip install --target FOLDER openvino                         # a rival for this bench alone

One process runs all contenders in turns, with weights flushed from the caches before each call, and
prints medians and quartiles of processor time, and of wall time. On a busy machine
only ratios of processor time mean something. The bench names rivals that are not installed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from bench import options_of, say_conditions
from bench.sparse.experts import measure_experts
from bench.sparse.matrix import measure_matrix, measure_threads
from bench.sparse.models import MODELS, measure_generate
from efficientllava.sparse.cpu.processor import chosen_path


def main() -> None:
    """Measure and print tables; with --device cuda those of `bench.card.sparse`."""
    if any(option.startswith("--device") for option in sys.argv):
        from bench.card.sparse import main as on_a_card

        on_a_card()
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ["matrix", "threads", "generate", "experts"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    shapes = ["11008x4096", "4096x11008", "4096x4096"]
    parser.add_argument("--shapes", nargs="+", default=shapes, help="rows x columns")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--tokens", type=int, default=24, help="after the first one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=40, help="of a matrix")
    parser.add_argument("--runs", type=int, default=8, help="of generate")
    parser.add_argument("--packages", type=Path, help="a folder with more packages")
    parser.add_argument("--device", help="cuda: on a card, with the options of card.sparse")
    wanted = options_of(parser)
    if wanted.packages:
        sys.path.append(str(wanted.packages))
    torch.set_grad_enabled(False)
    say_conditions(wanted, path=chosen_path().name)
    if "matrix" in wanted.parts:
        for dtype in wanted.dtypes:
            measure_matrix(wanted, getattr(torch, dtype), wanted.threads)
    if "threads" in wanted.parts:
        measure_threads(wanted)
    if "generate" in wanted.parts:
        for name in wanted.models:
            measure_generate(wanted, name)
    if "experts" in wanted.parts:
        measure_experts(wanted)
