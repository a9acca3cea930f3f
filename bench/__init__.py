"""Measurements of speed and memory, a module each: `python -m bench` lists them."""

from __future__ import annotations

import argparse
import json

from tasks.runtime.environment import prepare, use_threads

prepare()


def options_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options of a bench, whose `threads` this process takes from now on."""
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    import torch

    torch.set_num_threads(arguments.threads)
    return arguments


def say_conditions(arguments: argparse.Namespace, **more: object) -> None:
    """Print the conditions of a measurement as one line of JSON."""
    import torch

    from efficientllava.export.speed import machine

    conditions = {**vars(arguments), "machine": {**machine(), "torch": torch.__version__, **more}}
    print(json.dumps(conditions, default=str), flush=True)
