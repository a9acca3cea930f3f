"""PyTorch's answers: what exported graphs are compared with, and what a checkpoint says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from efficientllava.export.assistant import Prompt, processed, require_length


@dataclass(frozen=True)
class Reference:
    """PyTorch's greedy answer to one prompt.

    Attributes:
        features: image features [image tokens, width]; None without an image.
        tokens: the new token ids, an end token included when one came.
        logits: [new tokens, vocabulary], each row what its token was chosen from.
    """

    prompt: Prompt
    features: np.ndarray | None
    tokens: list[int]
    logits: np.ndarray


@torch.no_grad()
def reference_answer(
    model: PreTrainedModel,
    processor: Any,
    prompt: Prompt,
    new_tokens: int,
    prompt_tokens: int | None = None,
) -> Reference:
    """Answer a prompt with `model.generate`, greedily, and keep what it computed.

    Raises:
        UserError: the prompt cannot be read, or has more than `prompt_tokens` tokens.
    """
    inputs = processed(processor, prompt, "pt")
    if prompt_tokens is not None:
        require_length(inputs["input_ids"].shape[1], prompt_tokens)
    features = None
    if "pixel_values" in inputs:
        output = model.get_image_features(pixel_values=inputs["pixel_values"], return_dict=True)
        features = torch.cat(list(output.pooler_output)).numpy()
    tokens, logits = _generated(model, inputs, new_tokens)
    return Reference(prompt, features, tokens, logits)


@torch.no_grad()
def checkpoint_answer(
    model: PreTrainedModel, processor: Any, prompt: Prompt, new_tokens: int
) -> str:
    """The greedy answer of a model of any family, without special tokens.

    Raises:
        UserError: the prompt cannot be read, or the model takes no images and there is one.
    """
    tokens, _ = _generated(model, processed(processor, prompt, "pt"), new_tokens)
    return str(processor.tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def _generated(
    model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], new_tokens: int
) -> tuple[list[int], np.ndarray]:
    """Greedy tokens after a prompt, and the logits [new tokens, vocabulary] that chose them."""
    generated = model.generate(
        **{name: inputs[name] for name in inputs if name != "token_type_ids"},
        do_sample=False,
        num_beams=1,
        max_new_tokens=new_tokens,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens: list[int] = generated.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    return tokens, torch.cat(generated.logits).float().numpy()
