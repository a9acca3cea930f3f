"""A tokenizer in the place of a processor, for models that read text only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerBase

from efficientllava.errors import UserError


class TextProcessor:
    """A processor made of a tokenizer alone.

    Args:
        tokenizer: given a pad token where it has none (its end token): padding is masked.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        self.tokenizer = tokenizer

    @property
    def writes_special_tokens(self) -> bool:
        """Whether prompts come from a chat template, with every special token they need."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def __call__(
        self, text: str | Sequence[str], images: Sequence[Any] | None = None, **settings: Any
    ) -> BatchEncoding:
        """The tokens of texts, as `tokenizer` gives them.

        Raises:
            UserError: there are images.
        """
        if images:
            raise UserError(
                "the model takes no images: it is a text-only language model",
                where="prompt",
                remedy="ask without an image, or use a vision-language model",
            )
        texts = text if isinstance(text, str) else list(text)
        # decoders take no token types, which tokenizers of no particular class give
        return self.tokenizer(texts, return_token_type_ids=False, **settings)

    def batch_decode(self, tokens: Any, **settings: Any) -> list[str]:
        """The texts of token ids [n, T]."""
        texts: list[str] = self.tokenizer.batch_decode(tokens, **settings)
        return texts

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer's files."""
        self.tokenizer.save_pretrained(folder)
