"""A tiny model with random weights, and its processor, for every family in the adapter's table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    Gemma2Config,
    GemmaConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2Tokenizer,
    Qwen3_5Tokenizer,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from efficientllava.models.families import FAMILIES
from efficientllava.models.processors.still_images import still_image_class
from efficientllava.models.processors.text_processor import TextProcessor
from tests.models.families.base import TEXT, VISION, TinyFamily, characters, tokenizer
from tests.models.families.recent import EXPERTS, RECENT, RECENT_TEXT

TILES = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "end_of_utterance_token": "<end_of_utterance>",
    "global_image_token": "<global-img>",
    **{f"r{i}c{j}": f"<row_{i}_col_{j}>" for i in range(1, 3) for j in range(1, 3)},
}


def _llava(size: int, ids: dict[str, int]) -> LlavaConfig:
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION, patch_size=8),
        text_config=LlamaConfig(**TEXT, vocab_size=size),
        image_token_index=ids["<image>"],
        vision_feature_layer=-1,
    )


def _llava_processor() -> ProcessorMixin:
    return LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer({"image_token": "<image>"}),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


GRID = [[16, 32], [32, 16], [32, 32]]


def _llava_next(size: int, ids: dict[str, int]) -> LlavaNextConfig:
    return LlavaNextConfig(
        vision_config=CLIPVisionConfig(**VISION, patch_size=8),
        text_config=LlamaConfig(**TEXT, vocab_size=size),
        image_token_index=ids["<image>"],
        vision_feature_layer=-1,
        image_grid_pinpoints=GRID,
    )


def _llava_next_processor() -> ProcessorMixin:
    return LlavaNextProcessor(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": 16},
            crop_size={"height": 16, "width": 16},
            image_grid_pinpoints=GRID,
        ),
        tokenizer({"image_token": "<image>"}),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def _qwen(size: int, ids: dict[str, int]) -> Qwen2_5_VLConfig:
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": 4,
        "window_size": 16,
        "fullatt_block_indexes": [1],
        "out_hidden_size": 24,
    }
    rope = {"rope_type": "default", "mrope_section": [1, 1, 1], "rope_theta": 1e4}
    return Qwen2_5_VLConfig(
        vision_config=vision,
        text_config={**TEXT, "vocab_size": size, "rope_parameters": rope},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )


def _qwen_processor() -> ProcessorMixin:
    special = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "start": "<|vision_start|>",
        "end": "<|vision_end|>",
    }
    images = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 1024}
    )
    return still_image_class(Qwen2_5_VLProcessor)(images, tokenizer(special))


def _paligemma(text: type[Any]) -> Callable[[int, dict[str, int]], PaliGemmaConfig]:
    def config(size: int, ids: dict[str, int]) -> PaliGemmaConfig:
        return PaliGemmaConfig(
            vision_config=SiglipVisionConfig(**VISION, patch_size=8, vision_use_head=False),
            text_config=text(**TEXT, vocab_size=size, head_dim=6),
            image_token_index=ids["<image>"],
            projection_dim=24,
        )

    return config


def _paligemma_processor() -> ProcessorMixin:
    images = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    images.image_seq_length = 4
    return PaliGemmaProcessor(images, tokenizer({"image_token": "<image>"}))


def _idefics3(kind: type[Any]) -> Callable[[int, dict[str, int]], Any]:
    def config(size: int, ids: dict[str, int]) -> Any:
        return kind(
            vision_config={**VISION, "patch_size": 4},
            text_config=LlamaConfig(**TEXT, vocab_size=size),
            image_token_id=ids["<image>"],
            scale_factor=2,
            pad_token_id=0,
        )

    return config


def _idefics3_processor() -> ProcessorMixin:
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 16}
    )
    return Idefics3Processor(images, tokenizer(TILES), image_seq_len=4)


def _smolvlm_processor() -> ProcessorMixin:
    images = SmolVLMImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 16}
    )
    return still_image_class(SmolVLMProcessor)(images, tokenizer(TILES), image_seq_len=4)


def _internvl(size: int, ids: dict[str, int]) -> InternVLConfig:
    return InternVLConfig(
        vision_config=InternVLVisionConfig(**VISION | {"image_size": [16, 16]}, patch_size=[4, 4]),
        text_config=Qwen2Config(**TEXT, vocab_size=size),
        image_token_id=ids["<IMG_CONTEXT>"],
        image_seq_length=4,
    )


def _internvl_processor() -> ProcessorMixin:
    special = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    images = GotOcr2ImageProcessorPil(
        size={"height": 16, "width": 16}, crop_to_patches=True, min_patches=1, max_patches=3
    )
    made: Any = still_image_class(InternVLProcessor)
    return made(images, tokenizer(special), image_seq_length=4)


def _text_only(model_type: str) -> TinyFamily:
    """A causal language model; heads of 6, where a family's would be as wide as its own models'."""
    kinds: dict[str, Any] = {
        "qwen2": Qwen2Tokenizer,
        "qwen3_5_text": Qwen3_5Tokenizer,
        "qwen3_5_moe_text": Qwen3_5Tokenizer,
    }
    kind = kinds.get(model_type)

    more = {
        "qwen3_5_text": RECENT_TEXT["qwen3_5"],
        "qwen3_5_moe_text": RECENT_TEXT["qwen3_5"]
        | EXPERTS
        | {"shared_expert_intermediate_size": 16},
        "qwen3_moe": EXPERTS,
        "mixtral": EXPERTS,
        "olmoe": EXPERTS,
        "gemma4_text": RECENT_TEXT["gemma4"],
    }.get(model_type, {})

    def config(size: int, ids: dict[str, int]) -> Any:
        sizes = TEXT | {"vocab_size": size, "head_dim": 6} | more
        return AutoConfig.for_model(model_type, **sizes)

    return TinyFamily(
        lambda: TextProcessor(characters(kind, {}) if kind else tokenizer({})),
        config,
        AutoModelForCausalLM.from_config,
    )


PICTURED = {
    "llava": TinyFamily(_llava_processor, _llava, LlavaForConditionalGeneration),
    "llava_next": TinyFamily(_llava_next_processor, _llava_next, LlavaNextForConditionalGeneration),
    "qwen2_5_vl": TinyFamily(_qwen_processor, _qwen, Qwen2_5_VLForConditionalGeneration),
    "paligemma": TinyFamily(
        _paligemma_processor, _paligemma(GemmaConfig), PaliGemmaForConditionalGeneration
    ),
    "paligemma2": TinyFamily(
        _paligemma_processor, _paligemma(Gemma2Config), PaliGemmaForConditionalGeneration
    ),
    "idefics3": TinyFamily(
        _idefics3_processor, _idefics3(Idefics3Config), Idefics3ForConditionalGeneration
    ),
    "smolvlm": TinyFamily(
        _smolvlm_processor, _idefics3(SmolVLMConfig), SmolVLMForConditionalGeneration
    ),
    "internvl": TinyFamily(_internvl_processor, _internvl, InternVLForConditionalGeneration),
}
"""Families that take images; two of them share a `model_type`."""

PICTURED |= RECENT

TINY = PICTURED | {
    name: _text_only(name) for name, family in FAMILIES.items() if not family.takes_images
}
