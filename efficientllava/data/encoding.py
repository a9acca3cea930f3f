"""Prompt, answer and picture as the tensors a model takes, whatever its processor returns.

Samples are encoded one at a time and joined afterwards. The rows of each sample are then known
for every tensor, also where a family strings the patches of all images together (Qwen2.5-VL,
InternVL) or adds dimensions for them (LLaVA-NeXT, Idefics3): no family is named here.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from PIL import Image
from torch.nn.functional import pad

from efficientllava.data.prompts import join_answer, processor_settings, special_tokens


@dataclass(frozen=True)
class Encoded:
    """One sample.

    Attributes:
        inputs: what the model takes; `input_ids` [1, T], others as the family wants them.
        answered: how many of the last tokens are the answer, the `closing` ones included.
        closing: how many of these the processor itself put behind the answer's text.
    """

    inputs: dict[str, torch.Tensor]
    answered: int = 0
    closing: int = 0


Pictures = Image.Image | list[Image.Image] | None
"""One picture, those that a prompt names in their order, or none."""


def encode_prompt(processor: Any, prompt: str, image: Pictures) -> Encoded:
    """Encode a prompt with its pictures, if it has any.

    Raises:
        ValueError, IndexError: the processor refuses it.
    """
    given = processor_settings(processor, prompt, image)
    return Encoded(_tensors(processor(text=[prompt], **given)))


def encode_answered(processor: Any, prompt: str, answer: str, image: Pictures) -> Encoded:
    """Encode a prompt with its image, if it has one, and the answer that follows it.

    A processor that keeps prompt and answer apart itself (PaliGemma's `suffix`: the prompt is read
    in both directions, the answer is not) is given both, and ends the answer with the tokenizer's
    end token. Else the answer follows (`join_answer`), and is what the text has more than the
    prompt, since a prompt's end may melt with the answer into other tokens.

    Raises:
        ValueError, IndexError: the processor refuses it.
    """
    given = processor_settings(processor, prompt, image)
    if _keeps_answers_apart(processor):
        encoded = processor(text=[prompt], suffix=[answer], **given)
        return Encoded(_tensors(encoded), int(encoded["token_type_ids"].sum()), closing=1)
    encoded = processor(text=[join_answer(prompt, answer)], **given)
    [(tokens, _)] = answer_tokens(processor, prompt, [answer])
    return Encoded(_tensors(encoded), len(tokens))


def answer_tokens(
    processor: Any, prompt: str, answers: Sequence[str]
) -> list[tuple[list[int], bool]]:
    """The tokens of each answer behind a prompt, and whether the prompt keeps its own tokens.

    All in one call of the tokenizer, which takes longer to be called than for what it does.
    """
    tokenizer = processor.tokenizer
    if _keeps_answers_apart(processor):
        encoded = tokenizer(list(answers), add_special_tokens=False)["input_ids"]
        return [(tokens, True) for tokens in encoded]
    texts = [prompt, *(join_answer(prompt, answer) for answer in answers)]
    alone, *together = tokenizer(texts, **special_tokens(processor, prompt))["input_ids"]
    shared = [common_prefix(alone, tokens) for tokens in together]
    return [
        (tokens[count:], count == len(alone))
        for tokens, count in zip(together, shared, strict=True)
    ]


def _keeps_answers_apart(processor: Any) -> bool:
    return _takes("suffix", type(processor))  # type: ignore[arg-type]


@cache
def _takes(name: str, processor: type) -> bool:
    return name in inspect.signature(processor.__call__).parameters


def _tensors(encoded: Any) -> dict[str, torch.Tensor]:
    return {
        name: value
        for name, value in encoded.items()
        if isinstance(value, torch.Tensor) and name != "labels"
    }


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences share at their beginning."""
    length = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        length += 1
    return length


def join(
    samples: Sequence[Encoded],
    pad_token: int | None,
    side: Literal["left", "right"] = "right",
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Join samples, padded to the largest of them.

    Args:
        pad_token: what `input_ids` are padded with; None, where the tokenizer has none, for each
            sample's own last token, which stands for no image. Everything else is padded with 0.
        side: where tokens are padded; everything else is padded on the right.

    Returns:
        Inputs by name, and for every tensor whose first dimension is not the sample the number of
        its rows per sample [n]; 0 for a sample without that input.
    """
    inputs, rows = {}, {}
    for name in dict.fromkeys(name for sample in samples for name in sample.inputs):
        having = [sample for sample in samples if name in sample.inputs]
        tensors = [sample.inputs[name] for sample in having]
        shape = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
        of_tokens = all(
            tensor.shape == sample.inputs["input_ids"].shape
            for tensor, sample in zip(tensors, having, strict=True)
        )
        inputs[name] = torch.cat(
            [
                _padded(
                    tensor, shape, _fill(name, tensor, pad_token), side if of_tokens else "right"
                )
                for tensor in tensors
            ]
        )
        counts = [
            sample.inputs[name].shape[0] if name in sample.inputs else 0 for sample in samples
        ]
        if any(count != 1 for count in counts):
            rows[name] = torch.tensor(counts)
    return inputs, rows


def _fill(name: str, tensor: torch.Tensor, pad_token: int | None) -> int:
    if name != "input_ids":
        return 0
    return int(tensor[0, -1]) if pad_token is None else pad_token


def _padded(tensor: torch.Tensor, shape: Sequence[int], fill: int, side: str) -> torch.Tensor:
    missing = [want - have for want, have in zip(shape, tensor.shape[1:], strict=True)]
    sides = [(amount, 0) if side == "left" else (0, amount) for amount in reversed(missing)]
    return pad(tensor, [n for pair in sides for n in pair], value=fill) if any(missing) else tensor
