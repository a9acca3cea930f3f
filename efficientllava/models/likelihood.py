"""The likelihood of each choice of a question after its prompt, for any model and processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from efficientllava.data.encoding import common_prefix
from efficientllava.data.prompts import question_prompt
from efficientllava.data.questions import Question
from efficientllava.models.families import device_of, require_family
from efficientllava.progress import Event, Progress


@dataclass(frozen=True)
class _Row:
    """One row of a batch.

    Attributes:
        text: what the processor gets.
        next_tokens: the tokens whose likelihood after `text` is wanted; or else
        scored: how many of the last tokens of `text` are the choice.
    """

    question: Question
    text: str
    next_tokens: tuple[int, ...] = ()
    scored: int = 0


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
    image_token = require_family(model.config.model_type).image_token  # type: ignore[union-attr,arg-type]
    rows = [row for question in questions for row in _rows(processor, question, image_token)]
    likelihoods: dict[str, list[float]] = {question.id: [] for question in questions}
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        for row, values in zip(batch, _batch_likelihoods(model, processor, batch), strict=True):
            likelihoods[row.question.id] += values
        progress(Event("question", min(start + batch_size, len(rows)), len(rows)))
    return [likelihoods[question.id] for question in questions]


def _rows(processor: Any, question: Question, image_token: str) -> list[_Row]:
    prompt = question_prompt(question, image_token)
    before = processor.tokenizer(prompt)["input_ids"]
    texts = [f"{prompt} {choice}" for choice in question.choices]
    tokens = [processor.tokenizer(text)["input_ids"] for text in texts]
    # the end of a prompt may melt with the choice into other tokens: what differs is the answer
    shared = [common_prefix(before, each) for each in tokens]
    if all(each == len(before) for each in shared) and all(
        len(each) == len(before) + 1 for each in tokens
    ):
        return [_Row(question, prompt, next_tokens=tuple(each[-1] for each in tokens))]
    return [
        _Row(question, text, scored=len(each) - same)
        for text, each, same in zip(texts, tokens, shared, strict=True)
    ]


def _batch_likelihoods(model: nn.Module, processor: Any, rows: list[_Row]) -> list[list[float]]:
    images = [image for row in rows if (image := row.question.open_image()) is not None]
    inputs = processor(
        text=[row.text for row in rows],
        images=images or None,
        padding=True,
        padding_side="right",  # a row's tokens stand at the same positions in every batch
        return_tensors="pt",
    ).to(device_of(model))
    logits: Tensor = model(**inputs).logits
    ends = inputs["attention_mask"].sum(dim=1).tolist()
    values = []
    for row, end, ids, row_logits in zip(rows, ends, inputs["input_ids"], logits, strict=True):
        if row.next_tokens:
            after = row_logits[end - 1].float().log_softmax(dim=-1)
            values.append(after[list(row.next_tokens)].tolist())
        else:
            places = torch.arange(end - row.scored, end, device=ids.device)
            before = row_logits[places - 1].float().log_softmax(dim=-1)
            values.append([float(before.gather(1, ids[places][:, None]).sum())])
    return values
