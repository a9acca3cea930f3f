"""Stage `export@METHOD-RATIO`: packed weights and ONNX graphs, their parity and their speed.

In:  params export, evaluation.style; artifacts/pruned/METHOD-RATIO, artifacts/model,
     artifacts/questions
Out: artifacts/export/METHOD-RATIO/ (packed/, a checkpoint; vision.onnx, prefill.onnx, decode.onnx,
     embeddings.safetensors, the processor's files; export.json, with the reason where a runtime
     cannot be used), artifacts/export_metrics/METHOD-RATIO.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.runtime.stage import ARTIFACTS, Stage, run_stage

if TYPE_CHECKING:
    from efficientllava.data.questions import Question
    from efficientllava.export.decoding import Prompt


def export(stage: Stage) -> None:
    """Export the pruned model and time it beside the dense one."""
    from efficientllava.data.questions import read_questions
    from efficientllava.export.model import export_model
    from efficientllava.files import write_json
    from efficientllava.models.checkpoint import load_processor
    from efficientllava.report.speedup import export_metrics

    settings, style = stage.parameters.export, stage.parameters.evaluation.style
    checkpoint = stage.folder("pruned")
    for folder in (checkpoint, ARTIFACTS / "model"):
        stage.check_settings(folder)
    processor = load_processor(ARTIFACTS / "model", style)
    questions = read_questions(ARTIFACTS / "questions", "test")[: settings.answers]
    record = export_model(
        checkpoint,
        ARTIFACTS / "model",
        _prompts(checkpoint, questions, processor),
        stage.folder("export"),
        settings,
        stage.progress,
        style,
    )
    write_json(ARTIFACTS / "export_metrics" / f"{stage.cell}.json", export_metrics(record))
    for runtime, row in record["runtimes"].items():
        if not row["available"]:
            print(f"not measured in {runtime}: {row['reason']} ({row['remedy']})", file=sys.stderr)
    # a model that is not exported has no answers
    if not record.get("tokens_match", True):
        print("answers differ from PyTorch's: see artifacts' export.json", file=sys.stderr)


def _prompts(checkpoint: Path, questions: Sequence[Question], processor: Any) -> list[Prompt]:
    """The questions as prompts of the model's family; a text-only model is asked without images."""
    from efficientllava.data.prompts import question_prompt
    from efficientllava.export.decoding import Prompt
    from efficientllava.models.checkpoint import check_checkpoint

    family = check_checkpoint(checkpoint)
    if not family.takes_images:
        questions = [replace(question, image=None) for question in questions]
    return [
        Prompt(question_prompt(question, family.image_token, processor), question.image)
        for question in questions
    ]


if __name__ == "__main__":
    run_stage(export, per_model=True)
