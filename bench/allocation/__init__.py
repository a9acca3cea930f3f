"""Ratios by every method at equal zeros: held-out loss, paired errors, cost of each.

    python -m bench allocation --model DIR --results runs.jsonl      # measures what is missing
    python -m bench allocation --results runs.jsonl --table          # prints what is there

A cell is a ratio, a draw of the calibration text, and a method. Each is one line of JSON when it is
done; a run that is killed goes on with the next one. The model is pruned sequentially with the
method's ratios and scored on the test part.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from bench import options_of, say_conditions

DATA = "EFFICIENTLLAVA_DATA"
METHODS = (
    "uniform",
    "efficientllava_plus",
    "fisher_rows",
    "plus_without_fisher_rows",
    "owl 0.04",
    "owl 0.08",
    "sensitivity",
    "slope 0.05",
    "slope 0.1",
    "output_error",
    "evopress",
    "efficientllava",
    "wanda",
    "magnitude",
)


def main() -> None:
    """Measure the cells that are missing, the most telling first; or print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench allocation")
    parser.add_argument("--model", type=Path, help="folder of a checkpoint")
    parser.add_argument(
        "--text",
        help="`demo`, a text file, or a folder with ptb.train.txt and ptb.test.txt; by default "
        f"ptb below ${DATA}",
    )
    parser.add_argument("--results", type=Path, required=True, help="JSON lines, one a cell")
    parser.add_argument("--work", type=Path, default=Path(".work/bench/allocation"))
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.6, 0.7])
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help=", ".join(METHODS))
    parser.add_argument("--segments", type=int, default=32, help="of calibration text")
    parser.add_argument("--length", type=int, default=256, help="tokens of a segment")
    parser.add_argument("--test-segments", type=int, default=64)
    parser.add_argument("--set", action="append", default=[], help="sensitivity.key=value")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--table", action="store_true", help="print what is there and measure nothing"
    )
    wanted = options_of(parser)
    from bench.allocation.table import table

    if not wanted.table:
        from bench.allocation.cells import measure

        if wanted.model is None:
            parser.error("--model is needed to measure")
        if wanted.text is None:
            if DATA not in os.environ:
                parser.error(f"give --text, or a folder that holds ptb/ in {DATA}")
            wanted.text = str(Path(os.environ[DATA]) / "ptb")
        say_conditions(wanted)
        measure(wanted)
    print(table(wanted.results))
