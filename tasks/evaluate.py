"""Stages `evaluate` and `evaluate_dense`: how well a model answers and predicts held-out text.

In:  params evaluation; a checkpoint, artifacts/questions or the benchmarks' own data
Out: artifacts/evaluation/METHOD-RATIO/ or .../dense/ (scores.json, predictions.jsonl, answers/)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.runtime.check import check_questions
from tasks.runtime.stage import ARTIFACTS, WORK, Stage, run_stage

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from efficientllava.benchmarks.run import Result


def evaluate(stage: Stage) -> None:
    """Answer the test questions and score them; measure the held-out text loss."""
    from efficientllava.benchmarks.judge.client import require_key
    from efficientllava.reading import read_model_config
    from efficientllava.registry import BENCHMARKS

    settings, dense = stage.parameters.evaluation, stage.method == "dense"
    checkpoint = ARTIFACTS / "model" if dense else stage.folder("pruned")
    folder = ARTIFACTS / "evaluation" / "dense" if dense else stage.folder("evaluation")
    if any(BENCHMARKS[name].judge for name in settings.named_benchmarks):
        require_key()  # fail now, not after hours of answers

    # before the weights are read
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
    from efficientllava.benchmarks.predictions import write_lines
    from efficientllava.benchmarks.text_loss import perplexity, segment_losses
    from efficientllava.data.text import held_out_segments
    from efficientllava.files import folder_digest, replacing, write_json, write_text
    from efficientllava.models.checkpoint import load_processor

    settings = stage.parameters.evaluation
    processor = load_processor(checkpoint, settings.style, settings.chat_template)
    key = folder_digest(checkpoint) if settings.named_benchmarks else ""
    results = {
        name: _benchmark(stage, name, model, processor, key) for name in settings.named_benchmarks
    }
    measured = {
        name: {"answer_nll": None, **result.outcome.scores} for name, result in results.items()
    }
    if settings.benchmark == "demo":
        record, lines = _demo(stage, model, processor)
    else:
        record = measured.pop(settings.benchmark)
        lines = [json.dumps(row) for row in results[settings.benchmark].answers]
    proxy = stage.parameters.proxy
    segments = held_out_segments(
        processor.tokenizer,
        settings.text or proxy.text,
        settings.text_segments,
        proxy.segment_length,
    )
    losses = segment_losses(model, segments, batch_size=8)
    record |= {"text_loss": losses.mean().item(), **perplexity(losses)}
    if measured:
        record["benchmarks"] = measured
    with replacing(folder) as temporary:
        answers = temporary / "answers"
        answers.mkdir(parents=True)
        # never empty, which is easier for whoever copies folders
        write_json(answers / "index.json", {"benchmarks": list(results)})
        for name, result in results.items():
            write_lines(answers / f"{name}.jsonl", result.answers)
            for file, value in result.files.items():
                write = write_lines if file.endswith(".jsonl") else write_json
                write(answers / f"{name}-{file}", value)
        write_text(temporary / "predictions.jsonl", "\n".join(lines) + "\n")
        write_json(temporary / "scores.json", record)


def _demo(stage: Stage, model: Any, processor: Any) -> tuple[dict[str, Any], list[str]]:
    """The likeliest choice of each demo question that the model takes.

    A text-only model gets those in words, one that needs images those about a picture.
    """
    from efficientllava.benchmarks.demo_questions.multiple_choice import answer_questions, scores
    from efficientllava.data.questions import read_questions
    from efficientllava.models.families import family_of
    from efficientllava.models.source import NEEDS_IMAGES

    settings = stage.parameters.evaluation
    questions = read_questions(ARTIFACTS / "questions", "test")
    if not family_of(model.config).takes_images:
        questions = [question for question in questions if question.image is None]
    elif model.config.model_type in NEEDS_IMAGES:
        questions = [question for question in questions if question.image is not None]
    questions = questions[: settings.questions]
    predictions = answer_questions(model, processor, questions, settings.batch_size, stage.progress)
    lines = [json.dumps(asdict(prediction), sort_keys=True) for prediction in predictions]
    return scores(questions, predictions), lines


def _benchmark(stage: Stage, name: str, model: Any, processor: Any, key: str) -> Result:
    """A benchmark of the catalogue: the model's answers and their scores."""
    from efficientllava.benchmarks.run import Plan, run_benchmark
    from efficientllava.benchmarks.scoring import judging_by
    from efficientllava.registry import BENCHMARKS

    settings, benchmark = stage.parameters.evaluation, BENCHMARKS[name]
    plan = Plan(
        benchmark,
        settings.data[name],
        split=settings.splits.get(name),
        style=settings.style if settings.style in benchmark.styles else None,
        questions=settings.questions,
        batch_size=settings.batch_size,
        new_tokens=settings.new_tokens,
        chat_template=settings.chat_template,
    )
    judging = judging_by(benchmark, settings.judge, WORK / "judge")
    work = WORK / "answers" / f"{name}-{key[:16]}.jsonl"
    return run_benchmark(model, processor, plan, stage.cell, key, work, judging, stage.progress)


if __name__ == "__main__":
    run_stage(evaluate, per_model=True)
