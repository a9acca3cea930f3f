"""A checkpoint as MLflow's python_function: questions about images in, answers out.

MLflow finds this module by its name in `MLmodel`; nothing is unpickled.
"""

from __future__ import annotations

import base64
import binascii
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientllava.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

QUESTION, IMAGE = "question", "image"
"""Columns: the user's message; a picture's bytes, or these as base64 or as a `data:` address."""
NEW_TOKENS, TOKENS = "new_tokens", 16
"""Parameter: tokens of an answer at most, and its default."""


class Answers:
    """A model with its processor."""

    def __init__(self, folder: Path) -> None:
        """Load a checkpoint, packed ones too.

        Raises:
            UserError: as `load_model` and `load_processor`.
        """
        from efficientllava.models.checkpoint import load_model, load_processor
        from efficientllava.models.families import family_of

        self._model, self._processor = load_model(folder), load_processor(folder)
        self._image_token = family_of(self._model.config).image_token

    def predict(self, data: pd.DataFrame, params: dict[str, Any] | None = None) -> list[str]:
        """The greedy answer to every row, as `efficientllava ask` gives it.

        Args:
            data: columns `question` and, where there is a picture, `image`.
            params: `new_tokens`, the tokens of an answer at most.

        Raises:
            UserError: a picture cannot be read, or the model takes none.
        """
        tokens = int((params or {}).get(NEW_TOKENS, TOKENS))
        images = list(data[IMAGE]) if IMAGE in data else [None] * len(data)
        for question in data[QUESTION]:
            if not isinstance(question, str):
                raise UserError(
                    f"is {type(question).__name__}, not a text",
                    where=f"column {QUESTION}",
                    remedy="give a DataFrame, or a list with one {question, image} a row",
                )
        return [
            self._answer(question, image, tokens)
            for question, image in zip(data[QUESTION], images, strict=True)
        ]

    def _answer(self, question: str, image: Any, tokens: int) -> str:
        from efficientllava.data.prompts import chat_prompt, format_prompt
        from efficientllava.export.decoding import Prompt
        from efficientllava.export.reference import checkpoint_answer

        content, question = _bytes_of(image), format_prompt(question, [], "")
        given = None if content is None or self._image_token in question else self._image_token
        text = chat_prompt(self._processor, question, given)
        with tempfile.TemporaryDirectory() as folder:
            picture = None
            if content is not None:
                picture = Path(folder) / "image"
                picture.write_bytes(content)
            prompt = Prompt(text, picture)
            return checkpoint_answer(self._model, self._processor, prompt, tokens)


def _bytes_of(image: Any) -> bytes | None:
    """A picture's bytes; None where the row has none (None, NaN, an empty text).

    Raises:
        UserError: neither bytes nor base64; paths and addresses are not opened.
    """
    if isinstance(image, bytes):
        return image
    if not isinstance(image, str) or not image:
        return None
    header, comma, content = image.partition(",")
    if not comma or not header.startswith("data:"):
        content = image
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(
            "is neither base64 nor a data: address",
            where="column image",
            remedy="send the picture's bytes as base64; paths and addresses are not opened",
        ) from error


def _load_pyfunc(path: str) -> Answers:
    """Called by MLflow with the folder that it has downloaded."""
    return Answers(Path(path))
