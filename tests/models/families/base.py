"""What tiny models of all families are made of: sizes, a tokenizer, model and processor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from efficientllava.models.processors.text_processor import TextProcessor

TEXT = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
}


def tokenizer(special: dict[str, str]) -> PreTrainedTokenizerFast:
    """Words w0 ... w49, the special tokens, and what prompts consist of."""
    prompt = ["Question:", "Options:", "Context:", "\n"]
    words = ["<pad>", "<unk>", "<s>", "</s>", *special.values(), *prompt]
    words += [f"w{number}" for number in range(50)]
    word_level = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    backend = Tokenizer(word_level)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=special,
    )


@dataclass(frozen=True)
class TinyFamily:
    """How to make a model from its processor's tokens, and the processor."""

    processor: Callable[[], ProcessorMixin | TextProcessor]
    config: Callable[[int, dict[str, int]], Any]
    model: Callable[[Any], PreTrainedModel]

    def build(self, seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin | TextProcessor]:
        processor = self.processor()
        ids = processor.tokenizer.get_vocab()
        torch.manual_seed(seed)
        config = self.config(max(ids.values()) + 1, ids)
        return self.model(config).eval(), processor


def characters(kind: Any, special: dict[str, str]) -> PreTrainedTokenizerFast:
    """A tokenizer of Qwen's own class without merges: transformers loads no other for it."""
    words = ["<pad>", "<unk>", "<s>", "</s>", *special.values()]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made: PreTrainedTokenizerFast = kind(
        {token: index for index, token in enumerate(words + letters)},
        merges=[],
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=special,
    )
    return made
