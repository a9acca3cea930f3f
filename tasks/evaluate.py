"""Stages `evaluate` and `evaluate_dense`: how well a model answers and predicts held-out text.

In:  params evaluation; a checkpoint, artifacts/questions or the benchmarks' own data
Out: artifacts/evaluation/METHOD-RATIO/ or .../dense/ (scores.json, predictions.jsonl, answers/)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.runtime.check import check_questions
from tasks.runtime.stage import ARTIFACTS, WORK, Stage, run_stage

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def evaluate(stage: Stage) -> None:
    """Answer the test questions and score them; measure the held-out text loss."""
    from efficientllava.reading import read_model_config
    from efficientllava.registry import ENGINES

    settings, dense = stage.parameters.evaluation, stage.method == "dense"
    checkpoint = ARTIFACTS / "model" if dense else stage.folder("pruned")
    folder = ARTIFACTS / "evaluation" / "dense" if dense else stage.folder("evaluation")
    # before the weights are read
    ENGINES[settings.engine].check(settings)
    stage.check_settings(checkpoint)
    check_questions(stage.parameters, read_model_config(checkpoint), local=False)
    with _answering(stage, checkpoint) as model:
        _measure(stage, model, checkpoint, folder)


@contextmanager
def _answering(stage: Stage, folder: Path) -> Iterator[PreTrainedModel]:
    """A model that answers questions: on the device, its blocks streamed if they do not fit.

    Per question the formula takes 1,024 tokens: keys and values of all blocks, one block's
    activations, and logits.

    Raises:
        UserError: not even streaming fits.
    """
    from efficientllava.models.checkpoint import load_model
    from efficientllava.models.families import adapter_for
    from efficientllava.offload.blocks_on_disk import blocks_on_disk
    from efficientllava.offload.devices import host_memory, open_device, usable_memory
    from efficientllava.offload.placement import (
        answering_bytes,
        choose_placement,
        needs_of,
        shape_of,
    )

    machine = stage.parameters.machine
    device, memory = open_device(machine.device), machine.device_memory
    model = load_model(folder)
    if device.type == "cpu" and memory is None:
        yield model
        return
    adapter = adapter_for(model)
    working = answering_bytes(shape_of(adapter), stage.parameters.evaluation.batch_size)
    placement = choose_placement(
        needs_of(adapter, working), usable_memory(device, memory), host_memory()
    )
    if placement.blocks == "device":
        yield model.to(device)
        return
    with blocks_on_disk(adapter, folder, WORK / "evaluate" / (stage.cell), device):
        yield model


def _measure(stage: Stage, model: Any, checkpoint: Path, folder: Path) -> None:
    from efficientllava.benchmarks.engines.base import Subject
    from efficientllava.benchmarks.predictions import write_lines
    from efficientllava.benchmarks.text_loss import perplexity, segment_losses
    from efficientllava.data.text import held_out_segments
    from efficientllava.files import replacing, write_json, write_text
    from efficientllava.models.checkpoint import load_processor
    from efficientllava.registry import ENGINES

    settings = stage.parameters.evaluation
    processor = load_processor(checkpoint, settings.style, settings.chat_template)
    subject = Subject(
        stage.cell,
        model,
        processor,
        checkpoint,
        ARTIFACTS / "questions",
        WORK,
        settings,
        stage.progress,
    )
    measured = ENGINES[settings.engine].measure(subject)
    proxy = stage.parameters.proxy
    segments = held_out_segments(
        processor.tokenizer,
        settings.text or proxy.text,
        settings.text_segments,
        proxy.segment_length,
    )
    losses = segment_losses(model, segments, batch_size=8)
    record = measured.record | {"text_loss": losses.mean().item(), **perplexity(losses)}
    with replacing(folder) as temporary:
        answers = temporary / "answers"
        answers.mkdir(parents=True)
        # never empty, which is easier for whoever copies folders
        write_json(answers / "index.json", {"benchmarks": list(measured.answers)})
        for name, rows in measured.answers.items():
            write_lines(answers / f"{name}.jsonl", rows)
        for file, value in measured.files.items():
            write = write_lines if file.endswith(".jsonl") else write_json
            write(answers / file, value)
        write_text(temporary / "predictions.jsonl", "\n".join(measured.lines) + "\n")
        write_json(temporary / "scores.json", record)


if __name__ == "__main__":
    run_stage(evaluate, per_model=True)
