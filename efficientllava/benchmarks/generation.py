"""Greedy answers in batches: the same tokens as one question at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from efficientllava.benchmarks.conversations import IMAGE_TOKEN
from efficientllava.benchmarks.journal import Journal
from efficientllava.benchmarks.records import Record
from efficientllava.errors import UserError
from efficientllava.files import file_digest, value_digest
from efficientllava.progress import Event, Progress


@dataclass(frozen=True)
class Asked:
    """A question with the full prompt that the model reads."""

    record: Record
    prompt: str


def generate_answers(
    model: Any,
    processor: Any,
    asked: Sequence[Asked],
    batch_size: int,
    new_tokens: int,
    journal: Journal,
    model_key: str,
    progress: Progress,
) -> list[str]:
    """The model's answers, stripped, without special tokens, in the order of the questions.

    Decoding is greedy (do_sample=False, num_beams=1), padding on the left. An answer that the
    journal holds for the same model, prompt, image and length is not asked for again.

    Args:
        model_key: digest of the model's weights.

    Raises:
        UserError: an image cannot be used, or the processor refuses a prompt.
    """
    keys = [_key(each, model_key, new_tokens) for each in asked]
    waiting = [
        (key, each) for key, each in zip(keys, asked, strict=True) if key not in journal.texts
    ]
    # equal questions once; similar lengths together, so that little is padded
    left = sorted(dict(waiting).items(), key=lambda pair: len(pair[1].prompt))
    done = len(asked) - len(waiting)
    with journal:
        for start in range(0, len(left), batch_size):
            batch = left[start : start + batch_size]
            texts = _batch_answers(model, processor, [each for _, each in batch], new_tokens)
            for (key, _), text in zip(batch, texts, strict=True):
                journal.add(key, text)
            done = sum(key in journal.texts for key in keys)
            progress(Event("question", done, len(asked)))
    return [journal.texts[key] for key in keys]


def _key(each: Asked, model_key: str, new_tokens: int) -> str:
    image = each.record.image
    if isinstance(image, Path):
        if not image.is_file():
            each.record.open_image()  # tells what is missing
        digest = file_digest(image)
    else:
        digest = hashlib.sha256(image).hexdigest() if image is not None else ""
    return value_digest([model_key, each.prompt, digest, new_tokens])


@torch.no_grad()
def _batch_answers(
    model: Any, processor: Any, batch: Sequence[Asked], new_tokens: int
) -> list[str]:
    tokens = generated_tokens(model, processor, batch, new_tokens)
    texts = processor.batch_decode(tokens, skip_special_tokens=True)
    return [text.strip() for text in texts]


@torch.no_grad()
def generated_tokens(
    model: Any, processor: Any, batch: Sequence[Asked], new_tokens: int
) -> torch.Tensor:
    """The new tokens [questions, <= new_tokens] of a batch, padded on the right.

    Raises:
        UserError: the processor refuses a prompt.
    """
    images = [image for each in batch if (image := each.record.open_image()) is not None]
    token = getattr(processor, "image_token", IMAGE_TOKEN)
    try:
        inputs = processor(
            text=[each.prompt.replace(IMAGE_TOKEN, token) for each in batch],
            images=images or None,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
    except (ValueError, IndexError) as error:
        raise UserError(
            f"the processor refuses a prompt: {str(error).strip()}",
            where=f"questions {batch[0].record.id} to {batch[-1].record.id}",
        ) from error
    inputs = inputs.to(model.device)
    sequences = model.generate(
        **{name: inputs[name] for name in inputs if name != "token_type_ids"},
        do_sample=False,
        num_beams=1,
        max_new_tokens=new_tokens,
    )
    new: torch.Tensor = sequences[:, inputs["input_ids"].shape[1] :]
    return new
