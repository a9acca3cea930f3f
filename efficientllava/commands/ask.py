"""The command `efficientllava ask` on a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from efficientllava.data.prompts import chat_prompt
from efficientllava.export.decoding import Prompt
from efficientllava.export.reference import checkpoint_answer
from efficientllava.models.checkpoint import load_model, load_processor
from efficientllava.models.families import family_of
from efficientllava.models.folder_kind import checkpoint_in


def checkpoint_reply(
    folder: Path, picture: Path | None, text: str, raw: bool, new_tokens: int, threads: int
) -> str:
    """A checkpoint's greedy answer, by PyTorch.

    Args:
        folder: a checkpoint, or an export with its packed one.
        text: the user's message, or with `raw` the whole prompt; an image token is put before it
            when there is an image and the text has none.

    Raises:
        UserError: the checkpoint, the image or the prompt cannot be used.
    """
    folder = checkpoint_in(folder)
    torch.set_num_threads(threads)
    model, processor = load_model(folder), load_processor(folder)
    image_token = family_of(model.config).image_token
    given = None if picture is None or image_token in text else image_token
    prompt = chat_prompt(None if raw else processor, text, given)
    return checkpoint_answer(model, processor, Prompt(prompt, picture), new_tokens)
