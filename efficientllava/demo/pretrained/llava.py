"""The LLaVA: a pretrained language model, the demo's vision tower, and a projector between them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers import PreTrainedTokenizerFast as Tokenizer

from efficientllava.demo.model import (
    IMAGE_TOKENS,
    build_processor,
    vision_config,
)
from efficientllava.demo.pretrained.language_model import CHAT_TEMPLATE, IMAGE_TOKEN
from efficientllava.errors import UserError
from efficientllava.files import load_tensors

BRIDGE = Path(__file__).with_name("bridge.safetensors")
"""The trained vision tower and projector; `python -m efficientllava.demo.pretrained` makes it."""
TRAINED = ("model.vision_tower.", "model.multi_modal_projector.")
_ROWS = 64
"""The vocabulary is padded to a multiple of this."""


def build_llava(
    language_model: LlamaForCausalLM, tokenizer: Tokenizer
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The LLaVA in float32, its language model's weights in place, tower and projector untrained.

    The embeddings get rows for the image token, each the mean of all others: it is replaced by
    features before any block sees it.
    """
    text = language_model.config
    known = text.vocab_size
    text.vocab_size = -(-len(tokenizer) // _ROWS) * _ROWS
    config = LlavaConfig(
        vision_config=vision_config(),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config).eval()
    weights = dict(language_model.model.state_dict())
    embeddings = weights["embed_tokens.weight"]
    added = embeddings.mean(dim=0).expand(text.vocab_size - known, -1)
    weights["embed_tokens.weight"] = torch.cat([embeddings, added])
    model.model.language_model.load_state_dict(weights)
    model.tie_weights()
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    processor = build_processor(tokenizer)
    processor.chat_template = tokenizer.chat_template = CHAT_TEMPLATE
    return model, processor


def bridge_of(model: LlavaForConditionalGeneration) -> dict[str, Tensor]:
    """The weights of vision tower and projector, by name."""
    return {name: w for name, w in model.state_dict().items() if name.startswith(TRAINED)}


def load_bridge(model: LlavaForConditionalGeneration, file: Path = BRIDGE) -> None:
    """Put trained weights into vision tower and projector.

    Raises:
        UserError: the file is missing, damaged or of another model.
    """
    given, own = load_tensors(file), bridge_of(model)
    shapes = {name: tuple(weight.shape) for name, weight in own.items()}
    if {name: tuple(weight.shape) for name, weight in given.items()} != shapes:
        raise UserError(
            "holds other weights than those of this vision tower and projector",
            where=str(file),
            remedy="make it again: python -m efficientllava.demo.pretrained",
        )
    model.load_state_dict(given, strict=False)
