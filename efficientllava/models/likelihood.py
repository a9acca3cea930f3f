"""The likelihood of each choice of a question after its prompt, for any model and processor."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from efficientllava.data.encoding import Encoded, answer_tokens, encode_answered, encode_prompt
from efficientllava.data.prompts import question_prompt
from efficientllava.data.questions import Question
from efficientllava.errors import UserError
from efficientllava.models.batches import batch_inputs
from efficientllava.models.families import family_of
from efficientllava.progress import Event, Progress, announce_if_long


@dataclass(frozen=True)
class _Row:
    """One row of a batch.

    Attributes:
        next_tokens: the tokens whose likelihood after `prompt` is wanted; or else
        choice: whose likelihood after `prompt` is wanted.
    """

    question: Question
    prompt: str
    next_tokens: tuple[int, ...] = ()
    choice: str = ""


@torch.no_grad()
def choice_likelihoods(
    model: nn.Module,
    processor: Any,
    questions: Sequence[Question],
    batch_size: int,
    progress: Progress,
) -> list[list[float]]:
    """Log-likelihood of every choice (the sum over its tokens), for every question.

    A question whose choices are single tokens takes one row of a batch, any other question a
    row for each choice. That depends on the question alone, so batches change nothing.
    """
    image_token = family_of(model.config).image_token  # type: ignore[union-attr,arg-type]
    rows = [row for question in questions for row in _rows(processor, question, image_token)]
    likelihoods: dict[str, list[float]] = {question.id: [] for question in questions}
    started, remaining = time.monotonic(), Counter(row.question.id for row in rows)
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        for row, values in zip(batch, _batch_likelihoods(model, processor, batch), strict=True):
            likelihoods[row.question.id] += values
        remaining.subtract(row.question.id for row in batch)
        done = sum(count == 0 for count in remaining.values())
        if start == 0:
            announce_if_long(done, time.monotonic() - started, len(questions) - done)
        progress(Event("question", done, len(questions)))
    return [likelihoods[question.id] for question in questions]


def _rows(processor: Any, question: Question, image_token: str) -> list[_Row]:
    prompt = question_prompt(question, image_token, processor)
    answers = answer_tokens(processor, prompt, question.choices)
    # tokens may merge across prompt and choice: the answer is the part that differs
    if all(kept and len(tokens) == 1 for tokens, kept in answers):
        return [_Row(question, prompt, next_tokens=tuple(tokens[0] for tokens, _ in answers))]
    return [_Row(question, prompt, choice=choice) for choice in question.choices]


def _encoded(processor: Any, row: _Row) -> Encoded:
    image = row.question.open_image()
    try:
        if row.next_tokens:
            return encode_prompt(processor, row.prompt, image)
        return encode_answered(processor, row.prompt, row.choice, image)
    except (ValueError, IndexError) as error:
        raise UserError(
            f"the model's processor refuses it: {str(error).strip()}",
            where=f"question {row.question.id}",
        ) from error


def _batch_likelihoods(model: nn.Module, processor: Any, rows: list[_Row]) -> list[list[float]]:
    samples = [_encoded(processor, row) for row in rows]
    # a row's tokens stand at the same positions in every batch
    inputs = batch_inputs(model, processor, samples, side="right")
    logits: Tensor = model(**inputs).logits
    values = []
    for row, sample, ids, row_logits in zip(
        rows, samples, inputs["input_ids"], logits, strict=True
    ):
        end = sample.inputs["input_ids"].shape[1]
        if row.next_tokens:
            after = row_logits[end - 1].float().log_softmax(dim=-1)
            values.append(after[list(row.next_tokens)].tolist())
        else:
            values.append([float(answer_likelihoods(row_logits, ids, sample)[0].sum())])
    return values


def answer_likelihoods(logits: Tensor, ids: Tensor, sample: Encoded) -> tuple[Tensor, Tensor]:
    """Log-likelihood of each token of a row's answer, and whether it is the likeliest, [n] each.

    Args:
        logits: [T, vocabulary] of the row, padded on the right.
        ids: [T], its tokens.
        sample: the row as it was encoded.
    """
    end = sample.inputs["input_ids"].shape[1]
    positions = torch.arange(end - sample.answered, end - sample.closing, device=ids.device)
    before = logits[positions - 1].float().log_softmax(dim=-1)
    tokens = ids[positions]
    return before.gather(1, tokens[:, None])[:, 0], before.argmax(dim=-1) == tokens
