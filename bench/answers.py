"""Text and answers of pruned models: held-out text loss, answer loss and accuracy over draws.

    python -m bench answers --model artifacts/model --questions artifacts/questions

A draw is of the text and the image-text pairs that prune the model; the questions are the test
split's. Errors are over draws.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from statistics import fmean, stdev

from bench import options_of, say_conditions


def main() -> None:
    """Prune and score every draw, print a line each and a table of means."""
    parser = argparse.ArgumentParser(prog="python -m bench answers")
    parser.add_argument("--model", type=Path, required=True, help="folder of a checkpoint")
    parser.add_argument("--questions", type=Path, required=True, help="in ScienceQA's layout")
    parser.add_argument("--text", help="as for `prune`; the packaged prose by default")
    parser.add_argument("--methods", nargs="+", default=["sparsegpt", "efficientllava_plus"])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.7])
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--segments", type=int, default=64, help="of 256 tokens")
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--work", type=Path, default=Path(".work/bench/answers"))
    parser.add_argument("--threads", type=int, default=1)
    wanted = options_of(parser)

    from efficientllava import calibration_data, load, prune
    from efficientllava.benchmarks.demo_questions.multiple_choice import answer_questions, scores
    from efficientllava.benchmarks.text_loss import text_loss
    from efficientllava.data.questions import read_questions
    from efficientllava.data.text import held_out_segments
    from efficientllava.models.checkpoint import load_model
    from efficientllava.progress import silent

    say_conditions(wanted)
    vlm, questions = load(wanted.model), read_questions(wanted.questions, "test")
    text = held_out_segments(vlm.processor.tokenizer, wanted.text or "demo", 64, 256)
    machine = {"machine": {"threads": wanted.threads}}
    found: dict[tuple[str, float], list[tuple[float, float, float]]] = {}
    for draw in wanted.draws:
        data = calibration_data(
            vlm, wanted.text, segments=wanted.segments, count=wanted.pairs, seed=draw
        )
        for ratio, method in product(wanted.ratios, wanted.methods):
            pruned = prune(vlm, data, method, ratio, wanted.work, machine)
            model = load_model(pruned.folder)
            answers = answer_questions(model, vlm.processor, questions, 64, silent)
            score = scores(questions, answers)
            row = text_loss(model, text, 16), score["answer_nll"], 100 * score["accuracy"]
            found.setdefault((method, ratio), []).append(row)
            print(f"{method} at {ratio:g}, draw {draw}: {row}", flush=True)
    print("\n| method | ratio | draws | text loss | answer loss | accuracy % |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for (method, ratio), rows in found.items():
        columns = " | ".join(_told(values) for values in zip(*rows, strict=True))
        print(f"| {method} | {ratio:g} | {len(rows)} | {columns} |")


def _told(values: tuple[float, ...]) -> str:
    error = f" ± {stdev(values) / len(values) ** 0.5:.4f}" if len(values) > 1 else ""
    return f"{fmean(values):.4f}{error}"
