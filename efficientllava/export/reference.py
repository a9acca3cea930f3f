"""PyTorch's answers: what exported graphs are compared with, and what a checkpoint says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import LogitsProcessorList, PreTrainedModel

from efficientllava.data.encoding import encode_prompt
from efficientllava.errors import library_reads
from efficientllava.export.assistant import graph_inputs, read_image, refusals
from efficientllava.export.decoding import Prompt, Reference, require_length
from efficientllava.models.batches import batch_inputs, plain_generation


@torch.no_grad()
def graph_reference(
    model: PreTrainedModel,
    processor: Any,
    prompt: Prompt,
    new_tokens: int,
    prompt_tokens: int | None = None,
) -> Reference:
    """`reference_answer` with what exported graphs take and compute on the way.

    Raises:
        UserError: the prompt cannot be read, or has more than `prompt_tokens` tokens.
    """
    inputs = graph_inputs(processor, prompt)
    if prompt_tokens is not None:
        require_length(len(inputs.input_ids), prompt_tokens)
    features = None
    if inputs.pixel_values is not None:
        pixels = torch.from_numpy(inputs.pixel_values)
        output = model.get_image_features(pixel_values=pixels, return_dict=True)
        features = torch.cat(list(output.pooler_output)).numpy()
    answer = reference_answer(model, processor, prompt, new_tokens)
    return replace(answer, inputs=inputs, features=features)


def reference_answer(
    model: PreTrainedModel, processor: Any, prompt: Prompt, new_tokens: int
) -> Reference:
    """Answer a prompt with `model.generate`, greedily, and keep the logits; of any family.

    Raises:
        UserError: the prompt cannot be read, or the model takes no images and there is one.
    """
    tokens, logits = _generated(model, encoded(model, processor, prompt), new_tokens)
    return Reference(prompt, None, None, tokens, logits)


def forced_logits(model: PreTrainedModel, processor: Any, reference: Reference) -> np.ndarray:
    """The logits [new tokens, vocabulary] of a model that is made to give a reference's tokens.

    `model.generate` runs as it does without being made to: a prefill, then one token at a time.
    """
    inputs = encoded(model, processor, reference.prompt)
    prompt_tokens = inputs["input_ids"].shape[1]

    def forced(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        token = reference.tokens[ids.shape[1] - prompt_tokens]
        return torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor([token]), 0.0)

    tokens, logits = _generated(model, inputs, len(reference.tokens), [forced])
    assert tokens == reference.tokens
    return logits


@torch.no_grad()
def checkpoint_answer(
    model: PreTrainedModel, processor: Any, prompt: Prompt, new_tokens: int
) -> str:
    """The greedy answer of a model of any family, without special tokens.

    Raises:
        UserError: the prompt cannot be read, or the model takes no images and there is one.
    """
    inputs = encoded(model, processor, prompt)
    where = str(getattr(model, "name_or_path", "") or "model")
    # special tokens and the processor's settings are checked by their use alone
    with library_reads("the model cannot answer with its settings", where):
        tokens, _ = _generated(model, inputs, new_tokens)
    return str(processor.tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def encoded(model: PreTrainedModel, processor: Any, prompt: Prompt) -> dict[str, torch.Tensor]:
    """`model_inputs` of a prompt whose image is a file.

    Raises:
        UserError: the image cannot be read, or the processor refuses the prompt.
    """
    image = None if prompt.image is None else read_image(prompt.image)
    return model_inputs(model, processor, prompt.text, image)


def model_inputs(
    model: PreTrainedModel, processor: Any, text: str, image: Image.Image | None
) -> dict[str, torch.Tensor]:
    """A prompt as evaluation encodes it, on the model's device: `generate` takes it as it is.

    Raises:
        UserError: the processor refuses the prompt.
    """
    with refusals(processor):
        sample = encode_prompt(processor, text, image)
    return batch_inputs(model, processor, [sample], side="left")


def _generated(
    model: PreTrainedModel,
    inputs: Mapping[str, torch.Tensor],
    new_tokens: int,
    processors: Sequence[Callable[..., torch.Tensor]] = (),
) -> tuple[list[int], np.ndarray]:
    """Greedy tokens after a prompt, and the logits [new tokens, vocabulary] before `processors`."""
    with plain_generation(model):
        generated = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=new_tokens,
            output_logits=True,
            logits_processor=LogitsProcessorList(processors),
            return_dict_in_generate=True,
        )
    tokens: list[int] = generated.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    return tokens, torch.cat(generated.logits).float().cpu().numpy()
