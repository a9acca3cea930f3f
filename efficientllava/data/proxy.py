"""The proxy data: text segments and image-text pairs, as tensors a model takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from efficientllava.errors import UserError
from efficientllava.files import load_tensors, read_json, save_tensors, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import ProcessorMixin

    from efficientllava.data.questions import Question

IGNORED = -100
"""Label of positions that are no answer (as in transformers)."""

TOKENS_PER_BATCH = 4096
"""Batches are cut by tokens: peak memory follows it, results do not."""


@dataclass(frozen=True)
class Pairs:
    """Image-text pairs, right-padded.

    Attributes:
        inputs: what the model takes, first dimension the pair: `input_ids` [n, T] int64,
            `attention_mask` [n, T] int64, `pixel_values` [n, ...] float32.
        labels: [n, T] int64: the answer's token ids at their own positions, IGNORED elsewhere.
            Without an answer, all IGNORED.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor

    def __len__(self) -> int:
        return self.labels.shape[0]

    def __getitem__(self, index: slice | torch.Tensor) -> Pairs:
        inputs = {name: tensor[index] for name, tensor in self.inputs.items()}
        return Pairs(inputs, self.labels[index])

    def answer_positions(self) -> torch.Tensor:
        """[n, T] bool: positions whose next token is part of the answer.

        Where a pair has no answer: its last position, where the answer would begin.
        """
        answers = torch.zeros_like(self.labels, dtype=torch.bool)
        answers[:, :-1] = self.labels[:, 1:] != IGNORED
        unanswered = ~answers.any(dim=1)
        last = self.inputs["attention_mask"].sum(dim=1) - 1
        answers[unanswered, last[unanswered]] = True
        return answers


@dataclass(frozen=True)
class ProxyData:
    """What stands in for the unknown training data.

    Attributes:
        segments: [n, length] int64, token ids of text.
        pairs: image-text pairs, or None.
        digest: of the stored files; "" before they are stored.
    """

    segments: torch.Tensor
    pairs: Pairs | None
    digest: str = ""


def batches(count: int, tokens: int) -> Iterator[slice]:
    """Cut `count` samples of `tokens` tokens each into batches."""
    step = max(1, TOKENS_PER_BATCH // max(tokens, 1))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def build_pairs(
    questions: Sequence[Question], processor: ProcessorMixin, count: int, seed: int
) -> Pairs:
    """Draw image-text pairs from questions and encode prompt + answer.

    Args:
        questions: of a training split; those without an image are left out.
        count: number of pairs drawn without replacement.
        seed: of the draw.

    Raises:
        UserError: fewer questions with an image than asked for.
    """
    from efficientllava.data.prompts import answer_text, question_prompt

    pictured = [question for question in questions if question.image is not None]
    if len(pictured) < count:
        raise UserError(
            f"{count} image-text pairs asked for, {len(pictured)} questions with an image at hand",
            where="proxy.pairs",
            remedy="lower proxy.pairs or give more training questions",
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = [pictured[i] for i in torch.randperm(len(pictured), generator=generator)[:count]]
    processor.tokenizer.padding_side = "right"
    texts = [f"{question_prompt(question)} {answer_text(question)}" for question in drawn]
    images = [question.open_image() for question in drawn]
    encoded = processor(text=texts, images=images, padding=True, return_tensors="pt")
    inputs = {
        name: tensor
        for name, tensor in encoded.items()
        if name in ("input_ids", "attention_mask") or tensor.shape[0] == count
    }
    labels = torch.full_like(inputs["input_ids"], IGNORED)
    for row, question in enumerate(drawn):
        length = int(inputs["attention_mask"][row].sum())
        answer = processor.tokenizer(" " + answer_text(question), add_special_tokens=False)
        answered = len(answer["input_ids"])
        labels[row, length - answered : length] = inputs["input_ids"][
            row, length - answered : length
        ]
    return Pairs(inputs, labels)


def save_proxy(folder: Path, proxy: ProxyData, manifest: dict[str, Any]) -> None:
    """Write segments.safetensors, pairs.safetensors (if any) and manifest.json."""
    folder = Path(folder)
    save_tensors(folder / "segments.safetensors", {"input_ids": proxy.segments})
    if proxy.pairs is not None:
        tensors = {**proxy.pairs.inputs, "labels": proxy.pairs.labels}
        save_tensors(folder / "pairs.safetensors", tensors)
    write_json(folder / "manifest.json", manifest)


def load_proxy(folder: Path) -> ProxyData:
    """Read what `save_proxy` wrote.

    Raises:
        UserError: a file is missing or damaged.
    """
    from efficientllava.files import folder_digest

    folder = Path(folder)
    read_json(folder / "manifest.json")
    segments = load_tensors(folder / "segments.safetensors")["input_ids"]
    pairs = None
    if (folder / "pairs.safetensors").exists():
        tensors = load_tensors(folder / "pairs.safetensors")
        labels = tensors.pop("labels")
        pairs = Pairs(tensors, labels)
    return ProxyData(segments, pairs, folder_digest(folder))
