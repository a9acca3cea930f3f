"""Packed conversations on which the demo model is trained: a ground and questions about it."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from efficientllava.data.prompts import format_prompt
from efficientllava.demo.questions.generator import draw_conversation
from efficientllava.demo.questions.items import Item
from efficientllava.demo.questions.pictures import Picture

IGNORED, PROMPT, ANSWER, TEXT = 0, 1, 2, 3
_QUESTIONS = 4  # at most, about one ground
_QUESTIONS_IN_ROW = 8  # drawn for one row; more than fit
_SHARE_WITH_OPTIONS = 0.6


@dataclass(frozen=True)
class Conversations:
    """Right-padded token rows.

    Attributes:
        ids: [n, length].
        roles: [n, length], IGNORED, PROMPT or ANSWER for each token.
        pixels: [pictures, 3, height, width], uint8.
        picture: [n], the row's index into `pixels`, -1 without a picture.
    """

    ids: Tensor
    roles: Tensor
    pixels: Tensor
    picture: Tensor


def pack_conversations(
    tokenizer: PreTrainedTokenizerFast, image_tokens: int, count: int, length: int, seed: int
) -> Conversations:
    """Draw conversations of the training split; what exceeds `length` is left out."""
    draw = random.Random(f"conversations {seed}")
    conversations = [_row_of_items(draw) for _ in range(count)]
    with_options = [[draw.random() < _SHARE_WITH_OPTIONS for _ in items] for items in conversations]
    prompts = [
        _prompts(items, shown) for items, shown in zip(conversations, with_options, strict=True)
    ]
    encoded = iter(
        tokenizer([text for texts in prompts for text in texts], add_special_tokens=False)[
            "input_ids"
        ]
    )
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    image = tokenizer.convert_tokens_to_ids(tokenizer.image_token)
    ids = np.full((count, length), tokenizer.pad_token_id, dtype=np.int64)
    roles = np.full((count, length), IGNORED, dtype=np.int64)
    picture = torch.full((count,), -1)
    pictures: list[Picture] = []
    for row, items in enumerate(conversations):
        seen = items[0].picture
        head = [begin] + ([] if seen is None else [image] * image_tokens)
        if seen is not None:
            picture[row] = len(pictures)
            pictures.append(seen)
        ids[row, : len(head)] = head
        position, full = len(head), False
        for item in items:
            prompt = next(encoded)
            answer = [tokenizer.convert_tokens_to_ids(item.answer.lower()), end]
            full = full or position + len(prompt) + len(answer) > length
            if full:
                continue
            ids[row, position : position + len(prompt)] = prompt
            roles[row, position : position + len(prompt)] = PROMPT
            position += len(prompt)
            ids[row, position : position + 2] = answer
            roles[row, position : position + 2] = ANSWER
            position += 2
    return Conversations(
        torch.from_numpy(ids), torch.from_numpy(roles), picture_tensor(pictures), picture
    )


def _row_of_items(draw: random.Random) -> list[Item]:
    """A conversation, and further ones without a picture behind it to fill the row."""
    items = draw_conversation(draw, "train", _QUESTIONS)
    while len(items) < _QUESTIONS_IN_ROW:
        items += draw_conversation(draw, "train", _QUESTIONS, pictures=False)
    return items


def picture_tensor(pictures: list[Picture]) -> Tensor:
    """[n, 3, height, width], uint8."""
    pixels = (
        np.stack([picture.pixels for picture in pictures])
        if pictures
        else np.zeros((0, 32, 32, 3), dtype=np.uint8)
    )
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _prompts(items: list[Item], with_options: list[bool]) -> list[str]:
    """The questions as prompts; a text that was just read is not repeated."""
    texts = []
    known = ""
    for item, options in zip(items, with_options, strict=True):
        hint = "" if item.hint == known else item.hint
        texts.append(format_prompt(item.question, item.choices if options else (), hint))
        known = item.hint
    return texts
