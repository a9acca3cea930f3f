"""What lies on the GPU and what is streamed to it: decided from bytes before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from efficientllava.errors import UserError
from efficientllava.models.adapter import Adapter

GIB = 2**30
RESERVE = GIB
"""For CUDA's context and the gaps between allocations."""
LOGITS = 2**27
"""Logits that are formed at a time on a GPU."""


@dataclass(frozen=True)
class Needs:
    """Bytes that a piece of work wants.

    Attributes:
        fixed: vision tower, projector, embeddings, head: always on the device.
        blocks, largest_block: of all decoder blocks, and of the largest.
        working: activations and what else is there only while it computes.
        database: of all solutions in the form they have; 0 where none is used.
    """

    fixed: int
    blocks: int
    largest_block: int
    working: int
    database: int = 0


@dataclass(frozen=True)
class Placement:
    """Where things lie.

    Attributes:
        blocks: the decoder blocks; "streamed": two at a time on the device.
        database: "host" is page-locked memory, "disk" is mapped from its files.
        device_bytes: what that takes on the device, by the formula.
    """

    blocks: Literal["device", "streamed"]
    database: Literal["device", "host", "disk"]
    device_bytes: int


def place(needs: Needs, budget: int, host: int) -> Placement:
    """The fastest placement that fits.

    In that order: all on the device; the database there, from which blocks are then put together
    when they run; the blocks there; neither.

    Args:
        budget: bytes of the device that may be used.
        host: bytes of the host that are free; a database that takes at most half of them is kept
            there, one that takes more stays in its files.

    Raises:
        UserError: not even streaming fits, and how much is missing.
    """
    always = needs.fixed + needs.working + RESERVE
    streamed = 2 * needs.largest_block
    # a matrix on its way from a compact database: its kept weights and what decodes them
    decoding = 4 * needs.largest_block if needs.database else 0
    away: Literal["host", "disk"] = "host" if 2 * needs.database <= host else "disk"
    choices: list[Placement] = []
    if needs.database:
        both = always + needs.blocks + needs.database + decoding
        one = always + streamed + needs.database + decoding
        choices = [Placement("device", "device", both), Placement("streamed", "device", one)]
    choices += [
        Placement("device", away, always + needs.blocks + decoding),
        Placement("streamed", away, always + streamed + decoding),
    ]
    for choice in choices:
        if choice.device_bytes <= budget:
            return choice
    least = choices[-1].device_bytes
    raise UserError(
        f"{least / GIB:.1f} GiB of the GPU are needed even with decoder blocks streamed, "
        f"{budget / GIB:.1f} may be used: {(least - budget) / GIB:.1f} GiB are missing",
        where="params.yaml, machine.device_memory",
        remedy="use fewer proxy.segments or pairs, set search.kl_tokens, free the GPU, or set "
        "machine.device: cpu",
    )


@dataclass(frozen=True)
class DecoderShape:
    """The numbers of a model that memory follows.

    Attributes:
        width, mlp: of the residual stream and inside the MLP.
        blocks: decoder blocks.
        vocabulary: logits of a position.
        item: bytes of a weight and of an activation.
        projector: weights of the projector.
        queries: columns of q, k, v and o together, as rows that a Hessian's group has at most.
    """

    width: int
    mlp: int
    blocks: int
    vocabulary: int
    item: int
    projector: int


def forward_bytes(shape: DecoderShape, batch_tokens: int) -> int:
    """Activations of one block and logits of one chunk.

    Per token of a batch: residual, norm, q, k, v, attention's output and its sum (8 widths) and
    gate, up and their product (3 mlp). Logits: as the head gives them, in float32 and twice more
    for what is made of them.
    """
    per_token = (8 * shape.width + 3 * shape.mlp) * shape.item
    return batch_tokens * per_token + LOGITS * (shape.item + 3 * 4)


def search_bytes(
    shape: DecoderShape,
    text_tokens: int,
    pair_tokens: int,
    answer_tokens: int,
    batch_tokens: int,
    step_tokens: int = 0,
    kl_tokens: int | None = None,
) -> int:
    """What a search keeps on the device beside weights and database, and the most it adds.

    - embeddings of the proxy's tokens: tokens x width;
    - targets of the KL: text and answer tokens x vocabulary x 4 bytes, or x 12 bytes x k with
      `kl_tokens`; those of the answers once more in full for the projector;
    - either a forward pass (`forward_bytes`) or a step of the projector, whichever is more: with
      checkpointing one activation per block and token, one block's intermediate values (16 widths
      and 5 mlp) with gradients, and of the projector master, gradient and AdamW's two moments.

    Args:
        text_tokens, pair_tokens: of the proxy data; image tokens count.
        answer_tokens: scored positions of the pairs.
        batch_tokens: of a forward pass.
        step_tokens: of a projector's step (`search.projector_batch` pairs); 0 without evolution.
    """
    embeddings = (text_tokens + pair_tokens) * shape.width * shape.item
    per_position = 4 * shape.vocabulary if kl_tokens is None else 12 * kl_tokens
    targets = (text_tokens + answer_tokens) * per_position
    forward = forward_bytes(shape, batch_tokens)
    step = 0
    if step_tokens:
        targets += answer_tokens * 4 * shape.vocabulary
        kept = shape.blocks * shape.width + 2 * (16 * shape.width + 5 * shape.mlp)
        step = step_tokens * kept * shape.item + 4 * 4 * shape.projector
    return embeddings + targets + max(forward, step)


def calibration_bytes(
    shape: DecoderShape, tokens: int, batch_tokens: int, levels: int, block_size: int = 128
) -> int:
    """What building the database (or pruning, one level) adds to the model.

    Calibration activations (twice: embeddings, and those that enter the block), one block's
    Hessians, and of the largest group of matrices (gate and up, or down) 4 bytes x (weights +
    2 x levels x weights + 2 x block_size x levels x rows + 4 x columns^2) as docs/performance.md.
    """
    activations = 2 * tokens * shape.width * shape.item
    hessians = 4 * (3 * shape.width**2 + shape.mlp**2)
    groups = []
    for rows, columns in ((2 * shape.mlp, shape.width), (shape.width, shape.mlp)):
        weights = rows * columns
        stack = (1 + 2 * levels) * weights + 2 * block_size * levels * rows
        groups.append(4 * (stack + 4 * columns**2))
    solutions = levels * shape.item * (4 * shape.width**2 + 3 * shape.width * shape.mlp)
    forward = forward_bytes(shape, batch_tokens) - LOGITS * (shape.item + 3 * 4)
    return activations + hessians + max(groups) + 2 * solutions + forward


def shape_of(adapter: Adapter) -> DecoderShape:
    """The shape of a model's decoder, from its largest block."""
    largest = max(adapter.matrices, key=lambda matrix: max(matrix.weight.shape))
    width = min(largest.weight.shape)
    return DecoderShape(
        width=width,
        mlp=max(largest.weight.shape),
        blocks=len(adapter.blocks),
        vocabulary=int(adapter.model.get_output_embeddings().weight.shape[0]),  # type: ignore[operator]
        item=largest.weight.element_size(),
        projector=sum(parameter.numel() for parameter in adapter.projector.parameters()),
    )


def needs_of(adapter: Adapter, working: int, database: int = 0) -> Needs:
    """The bytes of a model's parts, beside what the work itself needs."""
    blocks = [sum(p.nbytes for p in block.parameters()) for block in adapter.blocks]
    total = sum(p.nbytes for p in adapter.model.parameters())
    return Needs(total - sum(blocks), sum(blocks), max(blocks), working, database)


def database_bytes(weights: int, ratios: list[float], item: int, compact: bool) -> int:
    """Bytes of a database: per weight and level its value, or a bit and the values that stay."""
    if not compact:
        return weights * len(ratios) * item
    return round(sum(weights * (1 / 8 + (1 - ratio) * item) for ratio in ratios))


def on_device(adapter: Adapter, device: torch.device) -> None:
    """Move a whole model to a device."""
    adapter.model.to(device)
