"""Measurements of speed and memory, a module each: `python -m bench` lists them."""

from __future__ import annotations

import argparse
import json

from tasks.runtime.environment import prepare, use_threads

prepare()


def options_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options of a bench, whose `threads` this process takes from now on."""
    wanted = parser.parse_args()
    use_threads(wanted.threads)
    import torch

    torch.set_num_threads(wanted.threads)
    return wanted


def say_conditions(wanted: argparse.Namespace, **more: object) -> None:
    """Print what is measured, and on what, as one line of JSON."""
    import torch

    from efficientllava.export.speed import machine

    told = {**vars(wanted), "machine": {**machine(), "torch": torch.__version__, **more}}
    print(json.dumps(told, default=str), flush=True)
