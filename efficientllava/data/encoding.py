"""Prompt, answer and picture as the tensors a model takes, whatever its processor returns.

Samples are encoded one at a time and joined afterwards. What belongs to which sample is then known
for every tensor, also where a family strings the patches of all images together (Qwen2.5-VL,
InternVL) or adds dimensions for them (LLaVA-NeXT, Idefics3): no family is named here.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch.nn.functional import pad


@dataclass(frozen=True)
class Encoded:
    """One sample.

    Attributes:
        inputs: what the model takes; `input_ids` [1, T], others as the family wants them.
        answered: how many of the last tokens are the answer.
    """

    inputs: dict[str, torch.Tensor]
    answered: int


def encode_answered(processor: Any, prompt: str, answer: str, image: Image.Image) -> Encoded:
    """Encode a prompt with its image and the answer that follows it after a space.

    A processor that keeps prompt and answer apart itself (PaliGemma's `suffix`: the prompt is read
    in both directions, the answer is not) is given both; else the answer is what the text has more
    than the prompt, since a prompt's end may melt with the answer into other tokens.
    """
    if "suffix" in inspect.signature(processor.__call__).parameters:
        encoded = processor(text=[prompt], suffix=[answer], images=[image], return_tensors="pt")
        answered = int(encoded["token_type_ids"].sum())
    else:
        text = f"{prompt} {answer}"
        encoded = processor(text=[text], images=[image], return_tensors="pt")
        alone = processor.tokenizer(prompt)["input_ids"]
        together = processor.tokenizer(text)["input_ids"]
        answered = len(together) - common_prefix(alone, together)
    inputs = {
        name: value
        for name, value in encoded.items()
        if isinstance(value, torch.Tensor) and name != "labels"
    }
    return Encoded(inputs, answered)


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences share at their beginning."""
    length = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        length += 1
    return length


def join(
    samples: Sequence[Encoded], pad_token: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Join samples, right-padded to the largest of them.

    Args:
        pad_token: what `input_ids` are padded with; everything else is padded with 0.

    Returns:
        Inputs by name, and for every tensor whose first dimension is not the sample the number of
        its rows per sample [n].
    """
    inputs, rows = {}, {}
    for name in samples[0].inputs:
        tensors = [sample.inputs[name] for sample in samples]
        shape = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
        fill = pad_token if name == "input_ids" else 0
        inputs[name] = torch.cat([_padded(tensor, shape, fill) for tensor in tensors])
        counts = [tensor.shape[0] for tensor in tensors]
        if any(count != 1 for count in counts):
            rows[name] = torch.tensor(counts)
    return inputs, rows


def _padded(tensor: torch.Tensor, shape: Sequence[int], fill: int) -> torch.Tensor:
    missing = [want - have for want, have in zip(shape, tensor.shape[1:], strict=True)]
    amounts = [amount for after in reversed(missing) for amount in (0, after)]
    return pad(tensor, amounts, value=fill) if any(missing) else tensor
