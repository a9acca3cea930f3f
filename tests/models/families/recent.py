"""Tiny models of the families of 2025 and 2026."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AyaVisionProcessor,
    Gemma3Processor,
    Gemma4Processor,
    Glm4vProcessor,
    Glm46VProcessor,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    ProcessorMixin,
    Qwen2VLProcessor,
    Qwen3_5Tokenizer,
    Qwen3VLProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from efficientllava.models.processors.still_images import still_image_class
from tests.models.families.base import TEXT, VISION, TinyFamily, characters, tokenizer
from tests.models.families.by_hand import ByHand, as_patches, as_tiles, with_size

MROPE = {"rope_type": "default", "mrope_section": [1, 1, 1], "rope_theta": 1e4}
QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "start": "<|vision_start|>",
    "end": "<|vision_end|>",
}
PATCHES = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 24,
}


def _family(
    model_type: str,
    processor: Callable[[], Any],
    vision: dict[str, Any],
    text: dict[str, Any],
    ids: dict[str, str],
    **more: Any,
) -> TinyFamily:
    """A family by its name in transformers.

    Args:
        vision, text: sizes beside those of all tiny models.
        ids: names of token ids in the configuration, and the tokens.
    """

    def config(size: int, known: dict[str, int]) -> Any:
        return AutoConfig.for_model(
            model_type,
            vision_config=vision,
            text_config={**TEXT, "vocab_size": size, **text},
            **{name: known[token] for name, token in ids.items()},
            **more,
        )

    return TinyFamily(processor, config, AutoModelForImageTextToText.from_config)


QWEN_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def _qwen_processor(kind: type[ProcessorMixin], words: Any = None) -> Callable[[], ProcessorMixin]:
    def make() -> ProcessorMixin:
        images = Qwen2VLImageProcessorPil(
            patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 1024}
        )
        tokens = characters(words, QWEN_TOKENS) if words else tokenizer(QWEN_TOKENS)
        return still_image_class(kind)(images, tokens)

    return make


GLM_TOKENS = {
    "image_token": "<|image|>",
    "video_token": "<|video|>",
    "start": "<|begin_of_image|>",
    "end": "<|end_of_image|>",
    "video_start": "<|begin_of_video|>",
    "video_end": "<|end_of_video|>",
}
GLM_IDS = {
    "image_token_id": "<|image|>",
    "video_token_id": "<|video|>",
    "image_start_token_id": "<|begin_of_image|>",
    "image_end_token_id": "<|end_of_image|>",
    "video_start_token_id": "<|begin_of_video|>",
    "video_end_token_id": "<|end_of_video|>",
}


def _glm(model_type: str, kind: type[ProcessorMixin], images: Any) -> TinyFamily:
    def processor() -> ProcessorMixin:
        pictures = images(
            patch_size=4, merge_size=2, size={"shortest_edge": 128, "longest_edge": 2048}
        )
        return still_image_class(kind)(pictures, tokenizer(GLM_TOKENS))

    return _family(
        model_type, processor, {**PATCHES, "image_size": 16}, {"rope_parameters": MROPE}, GLM_IDS
    )


GEMMA_TOKENS = {
    "image_token": "<image_soft_token>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
}


def _gemma3_processor() -> ProcessorMixin:
    images = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    return Gemma3Processor(images, tokenizer(GEMMA_TOKENS), image_seq_length=4)


GEMMA4_TOKENS = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
    "video": "<|video|>",
}


def _gemma4_processor() -> ProcessorMixin:
    images = Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70, pooling_kernel_size=2)
    return still_image_class(Gemma4Processor)(images, tokenizer(GEMMA4_TOKENS))


def _onevision_processor() -> ProcessorMixin:
    images = LlavaOnevisionImageProcessorPil(
        size={"height": 16, "width": 16}, image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]]
    )
    return still_image_class(LlavaOnevisionProcessor)(
        images,
        tokenizer({"image_token": "<image>", "video_token": "<video>"}),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
    )


AYA_TOKENS = {
    "image_token": "<image>",
    "start": "<|START_OF_IMG|>",
    "end": "<|END_OF_IMG|>",
    "patch": "<|IMG_PATCH|>",
    "tile": "TILE",
    "whole": "TILE_GLOBAL",
}


def _aya_processor() -> ProcessorMixin:
    images = GotOcr2ImageProcessorPil(
        size={"height": 16, "width": 16}, crop_to_patches=True, min_patches=1, max_patches=3
    )
    return AyaVisionProcessor(
        images, tokenizer(AYA_TOKENS), patch_size=4, img_size=16, downsample_factor=2
    )


def _vip_processor() -> ProcessorMixin:
    return LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer({"image_token": "<image>"}),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "decoder_sparse_step": 1,
}

RECENT_TEXT: dict[str, dict[str, Any]] = {
    "qwen3_5": {
        "rope_parameters": MROPE | {"partial_rotary_factor": 1.0},
        "head_dim": 6,
        "linear_key_head_dim": 6,
        "linear_value_head_dim": 6,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "gemma4": {
        "head_dim": 6,
        "global_head_dim": 12,
        "sliding_window": 8,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 4,
        "vocab_size_per_layer_input": 128,
    },
}
"""Sizes of decoders with blocks of two kinds."""

RECENT = {
    "qwen2_vl": _family(
        "qwen2_vl",
        _qwen_processor(Qwen2VLProcessor),
        {
            "depth": 2,
            "embed_dim": 16,
            "hidden_size": 24,
            "mlp_ratio": 2,
            "num_heads": 2,
            "patch_size": 4,
        },
        {"rope_parameters": MROPE},
        QWEN_IDS,
    ),
    "qwen3_vl": _family(
        "qwen3_vl",
        _qwen_processor(Qwen3VLProcessor),
        {**PATCHES, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
        {"rope_parameters": MROPE, "head_dim": 6, "num_hidden_layers": 3},
        QWEN_IDS,
    ),
    "qwen3_5": _family(
        "qwen3_5",
        _qwen_processor(Qwen3VLProcessor, Qwen3_5Tokenizer),
        {**PATCHES, "num_position_embeddings": 64},
        RECENT_TEXT["qwen3_5"],
        QWEN_IDS,
    ),
    "qwen3_vl_moe": _family(
        "qwen3_vl_moe",
        _qwen_processor(Qwen3VLProcessor),
        {**PATCHES, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
        {"rope_parameters": MROPE, "head_dim": 6, **EXPERTS},
        QWEN_IDS,
    ),
    "qwen3_5_moe": _family(
        "qwen3_5_moe",
        _qwen_processor(Qwen3VLProcessor, Qwen3_5Tokenizer),
        {**PATCHES, "num_position_embeddings": 64},
        {**RECENT_TEXT["qwen3_5"], **EXPERTS, "shared_expert_intermediate_size": 16},
        QWEN_IDS,
    ),
    "gemma3": _family(
        "gemma3",
        _gemma3_processor,
        {**VISION, "model_type": "siglip_vision_model", "patch_size": 4, "vision_use_head": False},
        {
            "head_dim": 6,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        {
            "image_token_index": "<image_soft_token>",
            "boi_token_index": "<start_of_image>",
            "eoi_token_index": "<end_of_image>",
        },
        mm_tokens_per_image=4,
    ),
    "gemma4": _family(
        "gemma4",
        _gemma4_processor,
        {
            **VISION,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "patch_size": 4,
            "pooling_kernel_size": 2,
            "position_embedding_size": 64,
        },
        RECENT_TEXT["gemma4"],
        {
            "image_token_id": "<|image|>",
            "boi_token_id": "<|image>",
            "eoi_token_id": "<image|>",
            "audio_token_id": "<|audio|>",
            "video_token_id": "<|video|>",
        },
        audio_config=None,
    ),
    "llava_onevision": _family(
        "llava_onevision",
        _onevision_processor,
        {**VISION, "model_type": "siglip_vision_model", "patch_size": 8, "vision_use_head": False},
        {"model_type": "qwen2"},
        {"image_token_index": "<image>", "video_token_index": "<video>"},
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
    ),
    "aya_vision": _family(
        "aya_vision",
        _aya_processor,
        {**VISION, "model_type": "siglip_vision_model", "patch_size": 4, "vision_use_head": False},
        {"model_type": "cohere2", "layer_types": ["sliding_attention", "full_attention"]},
        {"image_token_index": "<|IMG_PATCH|>"},
    ),
    "cohere2_vision": _family(
        "cohere2_vision",
        lambda: ByHand(
            tokenizer({"image": "<|IMG_PATCH|>"}), "<|IMG_PATCH|>", 4 * "<|IMG_PATCH|>", as_tiles
        ),
        {**VISION, "model_type": "siglip_vision_model", "patch_size": 4, "vision_use_head": False},
        {"model_type": "cohere2", "layer_types": ["sliding_attention", "full_attention"]},
        {"image_token_id": "<|IMG_PATCH|>"},
        alignment_intermediate_size=32,
    ),
    "mistral3": _family(
        "mistral3",
        lambda: ByHand(tokenizer({"image": "[IMG]"}), "[IMG]", 4 * "[IMG]", with_size),
        {**VISION, "model_type": "pixtral", "patch_size": 4},
        {"model_type": "mistral"},
        {"image_token_index": "[IMG]"},
        spatial_merge_size=2,
    ),
    "lfm2_vl": _family(
        "lfm2_vl",
        lambda: ByHand(tokenizer({"image": "<image>"}), "<image>", 4 * "<image>", as_patches),
        {
            **VISION,
            "model_type": "siglip2_vision_model",
            "patch_size": 4,
            "num_patches": 16,
            "vision_use_head": False,
        },
        {"model_type": "lfm2", "layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
        {"image_token_id": "<image>"},
        projector_hidden_size=16,
    ),
    "vipllava": _family(
        "vipllava",
        _vip_processor,
        {**VISION, "model_type": "clip_vision_model", "patch_size": 8, "num_hidden_layers": 2},
        {"model_type": "llama"},
        {"image_token_index": "<image>"},
        vision_feature_layers=[-2, -1],
    ),
    "glm4v": _glm("glm4v", Glm4vProcessor, Glm4vImageProcessorPil),
    "glm46v": _glm("glm46v", Glm46VProcessor, Glm46VImageProcessorPil),
}
