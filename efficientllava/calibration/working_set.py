"""Bytes that pruning and searching take beside the weights: formulas, for `models.placement`.

They say what is held at the same time, not what an allocator makes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from efficientllava.calibration.proxy_loss import CHUNK, OTHER_CHUNK
from efficientllava.data.proxy import TOKENS_PER_BATCH, ProxyData
from efficientllava.offload.placement import DecoderShape

PER_LOGIT = 16
"""Bytes: a logit as the head gives it, in float32, and twice more in what is made of it."""


@dataclass(frozen=True)
class Tokens:
    """Tokens of the proxy data; image tokens count.

    Attributes:
        text, pairs: in all.
        answers: positions of the pairs that are scored.
        batch: of a forward pass.
        step: of a projector's step; 0 without evolution.
    """

    text: int
    pairs: int
    answers: int
    batch: int
    step: int = 0

    @classmethod
    def of(cls, proxy: ProxyData, step_pairs: int = 0) -> Tokens:
        """Of proxy data, with so many pairs in a step."""
        segments, length = proxy.segments.shape
        if proxy.pairs is None:
            return cls(segments * length, 0, 0, max(TOKENS_PER_BATCH, length))
        count, width = proxy.pairs.labels.shape
        return cls(
            text=segments * length,
            pairs=count * width,
            answers=int(proxy.pairs.answer_positions().sum()),
            batch=max(TOKENS_PER_BATCH, length, width),
            step=min(step_pairs, count) * width,
        )


def search_bytes(
    shape: DecoderShape,
    tokens: Tokens,
    kl_tokens: int | None = None,
    gradient_checkpointing: bool = True,
    device: str = "cuda",
) -> int:
    """Bytes of a search beside weights and database: permanent ones, and the highest peak.

    - embeddings of the proxy's tokens: tokens x width;
    - targets of the KL: text and answer tokens x vocabulary x 4 bytes, or x 12 bytes x k with
      `kl_tokens`; those of the answers once more in full for the projector;
    - a forward pass (one block's activations and one chunk of logits), or a step of the projector,
      whichever is more: step tokens x (blocks x width + two blocks' activations, for gradients
      come and go), or x blocks x activations without checkpointing; answers' logits; and master,
      gradient and AdamW's two moments of the projector in float32;
    - a matrix on its way out of a compact database: 16 bytes for each of its weights.
    """
    chunk = CHUNK.get(device, OTHER_CHUNK) * PER_LOGIT
    per_position = 4 * shape.vocabulary if kl_tokens is None else 12 * kl_tokens
    total = (tokens.text + tokens.pairs) * shape.width * shape.item
    total += (tokens.text + tokens.answers) * per_position
    most = tokens.batch * shape.activations + chunk
    if tokens.step:
        total += tokens.answers * 4 * shape.vocabulary
        kept = shape.blocks * shape.width * shape.item + 2 * shape.activations
        if not gradient_checkpointing:
            kept = (shape.blocks + 1) * shape.activations
        logits = tokens.answers * tokens.step // max(tokens.pairs, 1) * shape.vocabulary * PER_LOGIT
        most = max(most, tokens.step * kept + logits + 16 * shape.projector)
    return total + most + 16 * shape.width * shape.mlp


def calibration_bytes(
    shape: DecoderShape, tokens: Tokens, levels: int, block_size: int = 128
) -> int:
    """Bytes for building the database (or pruning, with one level) beside the model's weights.

    - activations of all calibration tokens, three times: embeddings, what enters the block, and,
      for a database, what leaves it;
    - Hessians of a block's four inputs, 4 bytes x (3 width^2 + mlp^2);
    - of the largest group (gate and up, or down) 4 bytes x (weights + 2 x levels x weights +
      2 x block_size x levels x rows + 4 x columns^2), all rows of it at once;
    - a block's solutions, twice: the last block's are written meanwhile.
    """
    activations = 3 * (tokens.text + tokens.pairs) * shape.width * shape.item
    hessians = 4 * (3 * shape.width**2 + shape.mlp**2)
    groups = []
    for rows, columns in ((2 * shape.mlp, shape.width), (shape.width, shape.mlp)):
        stack = (1 + 2 * levels) * rows * columns + 2 * block_size * levels * rows
        groups.append(4 * (stack + 4 * columns**2))
    solutions = 2 * levels * shape.item * shape.prunable
    return activations + hessians + max(groups) + solutions + tokens.batch * shape.activations


def database_bytes(weights: int, ratios: Sequence[float], item: int, compact: bool) -> int:
    """Bytes of a database: per weight and level its value, or a bit and the values that stay."""
    if not compact:
        return weights * len(ratios) * item
    return round(sum(weights * (1 / 8 + (1 - ratio) * item) for ratio in ratios))
