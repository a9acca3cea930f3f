"""The proxy data: text segments and image-text pairs, as tensors a model takes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from efficientllava.data.encoding import Encoded, encode_answered, join
from efficientllava.data.prompts import IMAGE_TOKEN, answer_text, question_prompt
from efficientllava.data.questions import Question
from efficientllava.errors import UserError
from efficientllava.files import (
    DamagedFile,
    file_digest,
    folder_digest,
    load_tensors,
    recorded_digests,
    replacing,
    save_tensors,
    write_sealed,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image
    from transformers import ProcessorMixin

IGNORED = -100
"""Label of positions that are no answer (as in transformers)."""

ROWS = "rows."
"""How the keys of `Pairs.rows` begin in pairs.safetensors."""

TOKENS_PER_BATCH = 4096
"""Batches are cut by tokens: peak memory follows it, results do not."""


@dataclass(frozen=True)
class Pairs:
    """Image-text pairs, right-padded.

    Attributes:
        inputs: what the model takes, first dimension the pair unless `rows` says otherwise:
            `input_ids` [n, T] int64, `attention_mask` [n, T] int64, `pixel_values` [n, ...]
            float32, and what else the family wants.
        labels: [n, T] int64: the answer's token ids at their own positions, IGNORED elsewhere.
            Without an answer, all IGNORED.
        rows: [n] int64 for each input whose first dimension is not the pair (patches of all images
            strung together): how many of its rows belong to each pair.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    rows: dict[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.labels.shape[0]

    def __getitem__(self, index: slice | torch.Tensor) -> Pairs:
        inputs = {
            name: tensor[self._rows_of(name, index)] if name in self.rows else tensor[index]
            for name, tensor in self.inputs.items()
        }
        rows = {name: counts[index] for name, counts in self.rows.items()}
        return Pairs(inputs, self.labels[index], rows)

    def _rows_of(self, name: str, index: slice | torch.Tensor) -> torch.Tensor:
        """[m]: the rows of an input that belong to the pairs at `index`, in that order."""
        counts = self.rows[name]
        stops = counts.cumsum(0)
        chosen = torch.arange(len(self))[index].tolist()
        spans = [torch.arange(int(stops[i] - counts[i]), int(stops[i])) for i in chosen]
        return torch.cat(spans) if spans else torch.empty(0, dtype=torch.int64)

    def to(self, device: torch.device) -> Pairs:
        """The same pairs on a device; how many rows belong to each is asked on the CPU."""
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Pairs(inputs, self.labels.to(device), self.rows)

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
    """Samples that stand in for the unknown training data.

    Attributes:
        segments: [n, length] int64, token ids of text.
        pairs: image-text pairs, or None.
        digest: of the stored files, or of the tensors (`tensors_digest`); "" before that.
        description: where text and pairs come from, in words; "" where it is unknown.
        reads: of the model that they were drawn for (`VisionLanguageModel.reads`); "" likewise.
    """

    segments: torch.Tensor
    pairs: Pairs | None
    digest: str = ""
    description: str = ""
    reads: str = ""


def batches(count: int, tokens: int) -> Iterator[slice]:
    """Cut `count` samples of `tokens` tokens each into batches."""
    step = max(1, TOKENS_PER_BATCH // max(tokens, 1))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def build_pairs(
    questions: Sequence[Question],
    processor: ProcessorMixin,
    count: int,
    seed: int,
    image_token: str = IMAGE_TOKEN,
) -> Pairs:
    """Draw image-text pairs from questions and encode prompt + answer.

    Args:
        questions: of a training split; those without an image are left out.
        count: number of pairs drawn without replacement.
        seed: of the draw.
        image_token: what stands for an image in a prompt of the model's family.

    Raises:
        UserError: fewer questions with an image than asked for, or an image that the processor
            refuses.
    """
    pictured = [question for question in questions if question.image is not None]
    if len(pictured) < count:
        raise UserError(
            f"{count} image-text pairs asked for, {len(pictured)} questions with an image at hand",
            where="proxy.pairs",
            remedy="lower proxy.pairs or give more training questions",
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = [pictured[i] for i in torch.randperm(len(pictured), generator=generator)[:count]]
    samples = [_encoded(processor, question, image_token) for question in drawn]
    return join_pairs(samples, processor)


def join_pairs(samples: Sequence[Encoded], processor: ProcessorMixin) -> Pairs:
    """Pairs of samples that were encoded one at a time, with their answers labelled."""
    inputs, rows = join(samples, processor.tokenizer.pad_token_id)
    labels = torch.full_like(inputs["input_ids"], IGNORED)
    for row, sample in enumerate(samples):
        length = int(inputs["attention_mask"][row].sum())
        answer = slice(length - sample.answered, length)
        labels[row, answer] = inputs["input_ids"][row, answer]
    return Pairs(inputs, labels, rows)


def _encoded(processor: ProcessorMixin, question: Question, image_token: str) -> Encoded:
    image = question.open_image()
    assert image is not None
    prompt = question_prompt(question, image_token, processor)
    return encode_pair(processor, prompt, answer_text(question), image, str(question.image))


def encode_pair(
    processor: ProcessorMixin, prompt: str, answer: str, image: Image, where: str
) -> Encoded:
    """One image-text pair.

    Args:
        where: what messages call the image.

    Raises:
        UserError: the processor refuses the image.
    """
    try:
        return encode_answered(processor, prompt, answer, image)
    except ValueError as error:
        raise UserError(
            f"the model's processor refuses it: {str(error).strip().splitlines()[0]}",
            where=f"{where} ({image.width} x {image.height})",
            remedy="leave the question out, or resize the image",
        ) from error


def tensors_digest(segments: torch.Tensor, pairs: Pairs | None) -> str:
    """sha256 over the names, types, shapes and numbers of proxy data."""
    digest = hashlib.sha256()
    named = {"segments": segments, **({} if pairs is None else _stored(pairs))}
    for name, tensor in sorted(named.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _stored(pairs: Pairs) -> dict[str, torch.Tensor]:
    rows = {f"{ROWS}{name}": counts for name, counts in pairs.rows.items()}
    return {**pairs.inputs, "labels": pairs.labels, **rows}


def save_proxy(folder: Path, proxy: ProxyData, manifest: dict[str, Any]) -> None:
    """Write segments.safetensors, pairs.safetensors (if any) and manifest.json, or nothing.

    The manifest holds the digests of the files, and its own.
    """
    with replacing(Path(folder)) as temporary:
        temporary.mkdir()
        save_tensors(temporary / "segments.safetensors", {"input_ids": proxy.segments})
        if proxy.pairs is not None:
            save_tensors(temporary / "pairs.safetensors", _stored(proxy.pairs))
        files = {path.name: file_digest(path) for path in sorted(temporary.glob("*.safetensors"))}
        write_sealed(temporary / "manifest.json", {**manifest, "files": files})


def load_proxy(folder: Path) -> ProxyData:
    """Read what `save_proxy` wrote.

    Raises:
        UserError: a file is missing or not as it was written.
    """
    folder = Path(folder)
    recorded = recorded_digests(folder / "manifest.json")
    segments = load_tensors(folder / "segments.safetensors")["input_ids"]
    pairs = None
    if (folder / "pairs.safetensors").exists():
        tensors = load_tensors(folder / "pairs.safetensors")
        labels = tensors.pop("labels")
        rows = {
            name.removeprefix(ROWS): tensors.pop(name)
            for name in list(tensors)
            if name.startswith(ROWS)
        }
        pairs = Pairs(tensors, labels, rows)
    for name, digest in recorded.items():
        if file_digest(folder / name) != digest:
            raise DamagedFile(folder / name)
    return ProxyData(segments, pairs, folder_digest(folder))
