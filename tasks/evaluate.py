"""Stages `evaluate` and `evaluate_dense`: how well a model answers and predicts held-out text.

In:  params evaluation; a checkpoint, artifacts/questions
Out: artifacts/evaluation/METHOD-RATIO/ or .../dense/ (scores.json, predictions.jsonl)
"""

from __future__ import annotations

import json
from dataclasses import asdict

from tasks.stage import ARTIFACTS, Stage, run_stage


def evaluate(stage: Stage) -> None:
    """Answer the test questions and score them; measure the held-out text loss."""
    from efficientllava.benchmarks.multiple_choice import answer_questions, scores
    from efficientllava.benchmarks.text_loss import text_loss
    from efficientllava.data.questions import read_questions
    from efficientllava.data.text import held_out_segments
    from efficientllava.files import write_json, write_text
    from efficientllava.models.checkpoint import load_model, load_processor

    wanted, dense = stage.parameters.evaluation, stage.method == "dense"
    checkpoint = ARTIFACTS / "model" if dense else stage.folder("pruned")
    folder = ARTIFACTS / "evaluation" / "dense" if dense else stage.folder("evaluation")

    model, processor = load_model(checkpoint), load_processor(checkpoint)
    questions = read_questions(ARTIFACTS / "questions", "test")[: wanted.questions]
    predictions = answer_questions(model, processor, questions, wanted.batch_size, stage.progress)
    proxy = stage.parameters.proxy
    segments = held_out_segments(
        processor.tokenizer, proxy.text, wanted.text_segments, proxy.segment_length
    )
    record = scores(questions, predictions)
    record["text_loss"] = text_loss(model, segments, batch_size=8)
    lines = [json.dumps(asdict(prediction), sort_keys=True) for prediction in predictions]
    write_text(folder / "predictions.jsonl", "\n".join(lines) + "\n")
    write_json(folder / "scores.json", record)


if __name__ == "__main__":
    run_stage(evaluate, per_model=True)
