"""Processors of families that also take video, where torchvision is not installed.

transformers' video processors need torchvision (and SmolVLM's num2words); questions about still
images do not. The classes here are the family's own processors without their video part.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from transformers import AutoConfig, ProcessorMixin, SmolVLMProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import is_torchvision_available


class _StillImages:
    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]


class _StillSmolVLM(SmolVLMProcessor):
    """SmolVLM's own __init__ asks for num2words, which only spells out numbers of frames."""

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        video_processor: Any = None,
        image_seq_len: int = 169,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.image_token = getattr(tokenizer, "image_token", "<image>")
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token = getattr(tokenizer, "video_token", "<video>")
        self.fake_image_token = getattr(tokenizer, "fake_image_token", "<fake_token_around_image>")
        self.global_image_token = getattr(tokenizer, "global_image_token", "<global-img>")
        self.end_of_utterance_token = getattr(
            tokenizer, "end_of_utterance_token", "<end_of_utterance>"
        )
        self.image_seq_len = image_seq_len
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def still_image_class(processor: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """A processor's class without its video part, under the same name (it is saved by name)."""
    base = _StillSmolVLM if processor is SmolVLMProcessor else processor
    return cast(type[ProcessorMixin], type(processor.__name__, (_StillImages, base), {}))


def processor_class(folder: Path) -> type[ProcessorMixin] | None:
    """The class to load a checkpoint's processor with; None where AutoProcessor can do it.

    Raises:
        OSError, ValueError, KeyError: as AutoConfig.from_pretrained.
    """
    if is_torchvision_available():
        return None
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    known = PROCESSOR_MAPPING.get(type(config), None)
    if known is None or "video_processor" not in known.get_attributes():
        return None
    return still_image_class(known)
