"""Make the bridge that the package ships: `python -m efficientllava.demo.pretrained`.

It trains the vision tower and the projector, states the accuracy on validation questions with a
picture, and writes bridge.safetensors. A killed run resumes.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from efficientllava.errors import UserError
from efficientllava.files import require_place
from efficientllava.progress import Event, silent


def main() -> int:
    """Exit status 0, or 2 with a message."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(".work"), help="unfinished training")
    parser.add_argument("--output", type=Path, help="default: bridge.safetensors of the package")
    parser.add_argument("--questions", type=int, default=200, help="validation questions")
    parser.add_argument(
        "--steps", type=int, help="through the language model; default: the recipe's"
    )
    parser.add_argument("--threads", type=int, default=1, help="another number, other bits")
    arguments = parser.parse_args()
    for name, least in (("questions", 1), ("steps", 0), ("threads", 1)):
        if (value := getattr(arguments, name)) is not None and value < least:
            parser.error(f"--{name} {value}: at least {least}")

    import torch

    from efficientllava.data.questions import read_questions
    from efficientllava.demo.pretrained.build import make_bridge
    from efficientllava.demo.pretrained.llava import BRIDGE
    from efficientllava.demo.pretrained.training import BridgeRecipe
    from efficientllava.demo.questions.layout import write_questions
    from efficientllava.parameters import DemoParameters

    torch.set_num_threads(arguments.threads)
    recipe = BridgeRecipe()
    if arguments.steps is not None:
        recipe = replace(recipe, steps=arguments.steps)
    asked = arguments.work / "bridge-questions"
    try:
        if arguments.output is not None:
            require_place(arguments.output, "--output")
        write_questions(asked, DemoParameters(validation_questions=1000), silent)
        pictured = [each for each in read_questions(asked, "val") if each.image is not None]
        metrics = make_bridge(
            arguments.output or BRIDGE,
            arguments.work,
            pictured[: arguments.questions],
            _tell,
            recipe,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(metrics))
    return 0


def _tell(event: Event) -> None:
    if event.done % 10 == 0 or event.done == event.total or event.name == "answer step":
        values = " ".join(f"{name} {value}" for name, value in event.values.items())
        print(f"{event.name} {event.done}/{event.total} {values}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
