"""Choose by formula what stays on the GPU and what is streamed, before anything is moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from efficientllava.errors import UserError
from efficientllava.models.families import Adapter

GIB = 2**30
RESERVE = GIB
"""For CUDA's context and the gaps between allocations."""


@dataclass(frozen=True)
class Needs:
    """Bytes that a piece of work needs.

    Attributes:
        fixed: vision tower, projector, embeddings, head: always on the device.
        blocks, largest_block: of all decoder blocks, and of the largest.
        working: activations and other temporary tensors.
        database: of all solutions in the form they have; 0 where none is used.
        kept: what is held beside that where no block has to be computed again for gradients.
    """

    fixed: int
    blocks: int
    largest_block: int
    working: int
    database: int = 0
    kept: int = 0


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


def choose_placement(needs: Needs, budget: int, host: int) -> Placement:
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
    away: Literal["host", "disk"] = "host" if 2 * needs.database <= host else "disk"
    choices: list[Placement] = []
    if needs.database:
        both = always + needs.blocks + needs.kept + needs.database
        one = always + streamed + needs.database
        choices = [Placement("device", "device", both), Placement("streamed", "device", one)]
    choices += [
        Placement("device", away, always + needs.blocks + needs.kept),
        Placement("streamed", away, always + streamed),
    ]
    for choice in choices:
        if choice.device_bytes <= budget:
            return choice
    least = choices[-1].device_bytes
    raise UserError(
        f"{least / GIB:.1f} GiB of the GPU are needed even with decoder blocks streamed, "
        f"{budget / GIB:.1f} may be used: {(least - budget) / GIB:.1f} GiB are missing",
        where="params.yaml, machine.device_memory",
        remedy="lower search.projector_batch, proxy.segments, proxy.pairs or "
        "evaluation.batch_size, set search.kl_tokens, free the GPU, or compute on the cpu",
    )


def needs_of(adapter: Adapter, working: int, database: int = 0, kept: int = 0) -> Needs:
    """The bytes of a model's parts, beside what the work itself needs."""
    blocks = [sum(p.nbytes for p in block.parameters()) for block in adapter.blocks]
    total = sum(p.nbytes for p in adapter.model.parameters())
    return Needs(total - sum(blocks), sum(blocks), max(blocks), working, database, kept)


@dataclass(frozen=True)
class DecoderShape:
    """The numbers of a model that memory follows.

    Attributes:
        width, mlp: of the residual stream and inside the MLP.
        blocks: decoder blocks.
        vocabulary: logits of a position.
        item: bytes of a weight and of an activation.
        projector: weights of the projector; 0 without one.
    """

    width: int
    mlp: int
    blocks: int
    vocabulary: int
    item: int
    projector: int

    @property
    def activations(self) -> int:
        """Bytes of one block per token: 6 widths (inputs of two norms; queries, keys, values,
        attention's output) and 3 mlp (gate, its SiLU, up)."""
        return (6 * self.width + 3 * self.mlp) * self.item

    @property
    def prunable(self) -> int:
        """Weights of a block's matrices, without heads that share keys and values."""
        return 4 * self.width**2 + 3 * self.width * self.mlp


def shape_of(adapter: Adapter) -> DecoderShape:
    """The shape of a model's decoder, from its largest matrix."""
    largest = max(adapter.matrices, key=lambda matrix: matrix.size).weight
    head = adapter.model.get_output_embeddings()  # type: ignore[operator]
    projector = [] if adapter.projector is None else list(adapter.projector.parameters())
    return DecoderShape(
        width=min(largest.shape),
        mlp=max(largest.shape),
        blocks=len(adapter.blocks),
        vocabulary=int(head.weight.shape[0]),
        item=largest.element_size(),
        projector=sum(parameter.numel() for parameter in projector),
    )


TOKENS_PER_QUESTION = 1024
"""Of a prompt with its image (576 tokens in LLaVA-1.5) and the answer, for memory."""


def answering_bytes(shape: DecoderShape, questions: int) -> int:
    """Bytes of a batch of questions: keys and values, one block's activations, all logits."""
    per_token = 2 * shape.width * shape.blocks * shape.item + shape.activations
    return questions * TOKENS_PER_QUESTION * (per_token + 2 * shape.vocabulary * shape.item)
