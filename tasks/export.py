"""Stage `export@METHOD-RATIO`: ONNX graphs, their parity with PyTorch, their speed.

In:  params export, evaluation.style; artifacts/pruned/METHOD-RATIO, artifacts/model,
     artifacts/questions
Out: artifacts/export/METHOD-RATIO/ (vision.onnx, prefill.onnx, decode.onnx,
     embeddings.safetensors, the processor's files, export.json); export.json alone, with the
     reason, of a model that is not exported
"""

from __future__ import annotations

import sys

from tasks.runtime.stage import ARTIFACTS, Stage, run_stage


def export(stage: Stage) -> None:
    """Export the pruned model and time it beside the dense one."""
    from efficientllava.data.prompts import question_prompt
    from efficientllava.data.questions import read_questions
    from efficientllava.export.assistant import Prompt
    from efficientllava.export.model import export_model

    settings = stage.parameters.export
    questions = read_questions(ARTIFACTS / "questions", "test")[: settings.answers]
    record = export_model(
        stage.folder("pruned"),
        ARTIFACTS / "model",
        [Prompt(question_prompt(question), question.image) for question in questions],
        stage.folder("export"),
        settings,
        stage.progress,
        stage.parameters.evaluation.style,
    )
    for runtime, row in record["runtimes"].items():
        if not row["available"]:
            print(f"not measured in {runtime}: {row['reason']}", file=sys.stderr)
    # a model that is not exported has no answers
    if not record.get("tokens_match", True):
        print("answers differ from PyTorch's: see artifacts' export.json", file=sys.stderr)


if __name__ == "__main__":
    run_stage(export, per_model=True)
