"""Processors of families that also take video or sound, where torchvision is not installed.

transformers' video processors need torchvision (and SmolVLM's num2words); questions about still
images do not. The classes here are the family's own processors without those parts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from transformers import AutoConfig, Gemma4Processor, ProcessorMixin, SmolVLMProcessor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import is_torchvision_available

from efficientllava.reading import read_model_config

OTHER_PARTS = ("feature_extractor", "video_processor")
"""Parts of a processor for sound and for video."""


class _WithoutOtherParts(ProcessorMixin):
    """Stands between a family's class and transformers' own, which checks the parts it is given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{k: v for k, v in kwargs.items() if k not in OTHER_PARTS})


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

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        """As other families': SmolVLM's own asks the video processor for its frames first."""
        return ProcessorMixin.apply_chat_template(self, *args, **kwargs)


class _StillGemma4(Gemma4Processor):
    """Gemma 4's own __init__ takes its parts in another order."""

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        chat_template: str | None = None,
        image_seq_length: int = 280,
        audio_seq_length: int = 750,
        audio_ms_per_token: int = 40,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            None,
            image_processor,
            tokenizer,
            None,
            chat_template,
            image_seq_length,
            audio_seq_length,
            audio_ms_per_token,
            **kwargs,
        )


OWN: dict[type[ProcessorMixin], type[ProcessorMixin]] = {
    SmolVLMProcessor: _StillSmolVLM,
    Gemma4Processor: _StillGemma4,
}


def still_image_class(processor: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """A processor's class without those parts, under the same name (it is saved by name)."""
    bases = (_StillImages, OWN.get(processor, processor), _WithoutOtherParts)
    return cast(type[ProcessorMixin], type(processor.__name__, bases, {}))


def processor_class(folder: Path) -> type[ProcessorMixin] | None:
    """The class to load a checkpoint's processor with; None where AutoProcessor can do it.

    Raises:
        Exception: as AutoConfig.from_pretrained.
    """
    if is_torchvision_available():
        return None
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    known = PROCESSOR_MAPPING.get(type(config), None)
    if known is None or "video_processor" not in known.get_attributes():
        return None
    return still_image_class(known)


def needs_torchvision(folder: Path) -> str | None:
    """How to get what a checkpoint's images need and this machine lacks; None where it is not so.

    Some families' image processors exist for torchvision only (Mistral 3, LFM2-VL, Cohere 2).
    """
    there = (folder / "config.json").exists()
    model_type = str(read_model_config(folder).get("model_type")) if there else ""
    backends = IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type) or {"pil": ""}
    without_torchvision = "pil" in backends and "Pixtral" not in str(backends["pil"])
    if is_torchvision_available() or without_torchvision:
        return None
    return f"images of {model_type} need torchvision: pip install torchvision"
