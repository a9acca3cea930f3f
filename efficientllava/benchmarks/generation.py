"""Greedy answers in batches: the same tokens as one question at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from efficientllava.benchmarks.journal import Journal
from efficientllava.data.conversations import IMAGE_TOKEN
from efficientllava.data.encoding import Encoded, Pictures, encode_prompt
from efficientllava.errors import UserError
from efficientllava.files import value_digest
from efficientllava.models.batches import batch_inputs, plain_generation, reads_token_types
from efficientllava.models.families import family_of
from efficientllava.models.processors.llava_images import crops_images
from efficientllava.progress import Event, Progress, announce_if_long

THOUGHT = "</think>"
"""The end of what models that think write before their answer."""


class Shown(Protocol):
    """A question with its pictures, as a benchmark's record has them."""

    @property
    def id(self) -> str:
        """What messages call it."""

    def image_digest(self) -> str:
        """Digest of its pictures; empty without one."""

    def open_image(self) -> Pictures:
        """Its pictures in RGB."""


@dataclass(frozen=True)
class Asked:
    """A question with the full prompt that the model reads."""

    record: Shown
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

    Decoding is greedy whatever generation_config.json says, padding on the left. An answer that the
    journal holds for the same model, prompt, prepared image and length is not asked for again.

    Args:
        model_key: digest of the model's weights.

    Raises:
        UserError: an image cannot be used, or the processor refuses a prompt.
    """
    keys = [_key(model, processor, question, model_key, new_tokens) for question in asked]
    waiting = [
        (key, question)
        for key, question in zip(keys, asked, strict=True)
        if key not in journal.texts
    ]
    # equal questions once; similar lengths together, so that little is padded
    left = sorted(dict(waiting).items(), key=lambda pair: len(pair[1].prompt))
    started = time.monotonic()
    with journal:
        for start in range(0, len(left), batch_size):
            batch = left[start : start + batch_size]
            texts = _batch_answers(
                model, processor, [question for _, question in batch], new_tokens
            )
            for (key, _), text in zip(batch, texts, strict=True):
                journal.add(key, text)
            done = sum(key in journal.texts for key in keys)
            if start == 0:
                announce_if_long(len(batch), time.monotonic() - started, len(left) - len(batch))
            progress(Event("question", done, len(asked)))
    return [journal.texts[key] for key in keys]


def _key(model: Any, processor: Any, question: Asked, model_key: str, new_tokens: int) -> str:
    digest = question.record.image_digest()
    # asked anew: answers under the settings of generation_config.json, and those of models that
    # read token types and did not get them
    read = ["plain", *(["token types"] if reads_token_types(model) else [])]
    # a LLaVA that pads keeps the keys of its earlier answers
    read += ["cropped"] if digest and crops_images(processor) else []
    return value_digest([model_key, _prompt(model, question), digest, new_tokens, *read])


@torch.no_grad()
def _batch_answers(
    model: Any, processor: Any, batch: Sequence[Asked], new_tokens: int
) -> list[str]:
    tokens = generated_tokens(model, processor, batch, new_tokens)
    end_tokens = model.generation_config.eos_token_id
    end_tokens = {end_tokens} if isinstance(end_tokens, int) else set(end_tokens or ())
    texts = processor.batch_decode(
        [_until_end(row.tolist(), end_tokens) for row in tokens], skip_special_tokens=True
    )
    # what a model thinks before it answers is no answer
    return [text.rpartition(THOUGHT)[2].strip() for text in texts]


def _until_end(tokens: list[int], end_tokens: set[int]) -> list[int]:
    """An answer without the padding behind its end, which may be any token."""
    ended = next((index for index, token in enumerate(tokens) if token in end_tokens), len(tokens))
    return tokens[: ended + 1]


@torch.no_grad()
def generated_tokens(
    model: Any, processor: Any, batch: Sequence[Asked], new_tokens: int
) -> torch.Tensor:
    """The new tokens [questions, <= new_tokens] of a batch, padded on the right.

    Raises:
        UserError: the processor refuses a prompt.
    """
    samples = [_encoded(model, processor, question) for question in batch]
    inputs = batch_inputs(model, processor, samples, side="left")
    with plain_generation(model):
        sequences = model.generate(**inputs, do_sample=False, max_new_tokens=new_tokens)
    new: torch.Tensor = sequences[:, inputs["input_ids"].shape[1] :]
    return new


def _encoded(model: Any, processor: Any, question: Asked) -> Encoded:
    image = question.record.open_image()
    try:
        return encode_prompt(processor, _prompt(model, question), image)
    except (ValueError, IndexError) as error:
        raise UserError(
            f"the processor refuses a prompt: {str(error).strip()}",
            where=f"question {question.record.id}",
        ) from error


def _prompt(model: Any, question: Asked) -> str:
    """The prompt with what stands for an image in the model's family."""
    return question.prompt.replace(IMAGE_TOKEN, family_of(model.config).image_token)
