"""The proxy loss L(alpha, W_p): how far a pruned language model is from what is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from efficientllava.calibration.block_walk import (
    LanguageInputs,
    language_inputs,
    pair_batches,
    text_batches,
)
from efficientllava.data.proxy import IGNORED, ProxyData
from efficientllava.models.families import Adapter

Fitness = Literal["kl", "nll"]
Head = Callable[[torch.Tensor], torch.Tensor]
"""Hidden states [n, d] to logits [n, vocabulary]."""

CHUNK = {"cpu": 2**20}
"""Logits formed at a time, by device: on a CPU what its caches hold, so that they are read from
there and not from memory; vocabulary x tokens never materialises."""
OTHER_CHUNK = 2**27
FEWEST_ROWS = 256
"""Of a chunk, for the head is read anew for each."""


def negative_log_likelihood(log_probabilities: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log p(wanted) per position [n]; positions without a wanted token (IGNORED) count 0."""
    return functional.nll_loss(log_probabilities, targets, ignore_index=IGNORED, reduction="none")


@dataclass(frozen=True)
class Distribution:
    """The dense model's probabilities at n positions, of all or of its most likely tokens.

    Attributes:
        probabilities: p [n, vocabulary], or [n, k] of the k most likely tokens.
        negative_entropy: sum p ln p [n], over these and the rest taken as one token.
        tokens: [n, k] which tokens those are; None in full.
    """

    probabilities: torch.Tensor
    negative_entropy: torch.Tensor
    tokens: torch.Tensor | None = None

    @classmethod
    def of(cls, log_probabilities: torch.Tensor, top: int | None = None) -> Distribution:
        """From log-probabilities [n, vocabulary]; only the `top` most likely tokens are kept."""
        if top is None or top >= log_probabilities.shape[1]:
            probabilities = log_probabilities.exp()
            return cls(probabilities, torch.linalg.vecdot(probabilities, log_probabilities))
        kept, tokens = log_probabilities.topk(top, dim=1)
        probabilities = kept.exp()
        rest = _rest(probabilities)
        entropy = torch.linalg.vecdot(probabilities, kept) + torch.xlogy(rest, rest)
        return cls(probabilities, entropy, tokens)

    def __getitem__(self, rows: slice | torch.Tensor) -> Distribution:
        tokens = None if self.tokens is None else self.tokens[rows]
        return Distribution(self.probabilities[rows], self.negative_entropy[rows], tokens)


def _rest(probabilities: torch.Tensor) -> torch.Tensor:
    """The remaining probability per position, at least the rounding error of its sum."""
    return (1.0 - probabilities.sum(dim=1)).clamp(min=1e-7)


def kl_divergence(dense: Distribution, logits: torch.Tensor) -> torch.Tensor:
    """KL(dense || pruned) = sum p ln p - sum p z + ln sum exp z per position [n].

    Log-probabilities are never formed: the vocabulary is read three times, not nine. With the
    most likely tokens only, the others count as one token: never more than the full divergence
    (data processing inequality), and 0 where the two agree.

    Args:
        logits: z [n, vocabulary] of the pruned model; log-probabilities will do.
    """
    total = torch.logsumexp(logits, dim=-1)
    if dense.tokens is None:
        return dense.negative_entropy - torch.linalg.vecdot(dense.probabilities, logits) + total
    kept = logits.gather(1, dense.tokens) - total[:, None]
    cross = torch.linalg.vecdot(dense.probabilities, kept)
    cross = cross + _rest(dense.probabilities) * _rest(kept.exp()).log()
    return dense.negative_entropy - cross


@dataclass
class LossBatch:
    """A proxy batch ready for scoring.

    Attributes:
        inputs: of the language model.
        positions: [B, T] bool, where a next token is scored.
        targets: [n] int64, the next tokens at those positions (IGNORED where there is none).
        dense: what the dense model says at those positions, or None.
    """

    inputs: LanguageInputs
    positions: torch.Tensor
    targets: torch.Tensor
    dense: Distribution | None = None


def hidden_states(language_model: nn.Module, inputs: LanguageInputs) -> torch.Tensor:
    """The language model's last hidden states [B, T, d]."""
    output = language_model(**{**inputs.arguments, "use_cache": False})
    states: torch.Tensor = output.last_hidden_state
    return states


def chunks(head: Head, hidden: torch.Tensor) -> Iterator[slice]:
    """Rows [n, d] of hidden states whose logits are formed at a time."""
    vocabulary = head(hidden[:0]).shape[-1]
    step = max(CHUNK.get(hidden.device.type, OTHER_CHUNK) // int(vocabulary), FEWEST_ROWS)
    for start in range(0, hidden.shape[0], step):
        yield slice(start, start + step)


def chunked_logits(head: Head, hidden: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Logits of the next token in float32 for rows [n, d], a chunk of rows at a time."""
    for rows in chunks(head, hidden):
        yield rows, head(hidden[rows]).float()


def next_tokens(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """[n]: the token after each marked position; IGNORED after the last column."""
    following = torch.full_like(ids, IGNORED)
    following[:, :-1] = ids[:, 1:]
    return following[positions]


def text_loss_batches(adapter: Adapter, segments: torch.Tensor) -> list[LossBatch]:
    """Batches that score every next token of text segments [n, length]."""
    result = []
    for batch in text_batches(segments):
        ids = batch["input_ids"]
        positions = torch.ones_like(ids, dtype=torch.bool)
        positions[:, -1] = False
        result.append(_loss_batch(adapter, batch, positions, next_tokens(ids, positions)))
    return result


def pair_loss_batches(adapter: Adapter, proxy: ProxyData) -> list[LossBatch]:
    """Batches that score the answers of image-text pairs, through the projector as it is."""
    result = []
    for batch, pairs in pair_batches(proxy.pairs) if proxy.pairs is not None else ():
        positions = pairs.answer_positions()
        targets = next_tokens(pairs.labels, positions)
        result.append(_loss_batch(adapter, batch, positions, targets))
    return result


def _loss_batch(
    adapter: Adapter,
    batch: dict[str, torch.Tensor],
    positions: torch.Tensor,
    targets: torch.Tensor,
) -> LossBatch:
    device, inputs = adapter.device, language_inputs(adapter, batch)
    return LossBatch(inputs, positions.to(device), targets.to(device))


@torch.no_grad()
def remember_dense(
    adapter: Adapter, head: Head, batches: Sequence[LossBatch], top: int | None = None
) -> Distribution:
    """Keep what the dense model says as the target of the KL divergence.

    Args:
        top: keep only so many most likely tokens per position; None for all.

    Returns:
        The targets of all batches, one after the other.
    """
    for batch in batches:
        hidden = hidden_states(adapter.language_model, batch.inputs)[batch.positions]
        batch.dense = _joined(
            [
                Distribution.of(functional.log_softmax(logits, dim=-1), top)
                for _, logits in chunked_logits(head, hidden)
            ]
        )
    return _joined([batch.dense for batch in batches if batch.dense is not None])


def _joined(parts: Sequence[Distribution]) -> Distribution:
    if len(parts) == 1:
        return parts[0]
    tokens = [part.tokens for part in parts if part.tokens is not None]
    return Distribution(
        torch.cat([part.probabilities for part in parts]),
        torch.cat([part.negative_entropy for part in parts]),
        torch.cat(tokens) if tokens else None,
    )


@torch.no_grad()
def loss_sum(
    language_model: nn.Module, head: Head, batches: Sequence[LossBatch], fitness: Fitness
) -> tuple[float, int]:
    """Sum of the losses at all scored positions of batches, in float64, and their number."""
    total, count = 0.0, 0
    for batch in batches:
        hidden = hidden_states(language_model, batch.inputs)[batch.positions]
        for rows, logits in chunked_logits(head, hidden):
            targets = batch.targets[rows]
            if fitness == "kl":
                assert batch.dense is not None, "remember_dense comes first"
                losses = kl_divergence(batch.dense[rows], logits)
                count += losses.numel()
            else:
                losses = negative_log_likelihood(functional.log_softmax(logits, -1), targets)
                count += int((targets != IGNORED).sum())
            total += float(losses.sum(dtype=torch.float64))
    return total, count


def mean_loss(
    language_model: nn.Module, head: Head, batches: Sequence[LossBatch], fitness: Fitness
) -> float:
    """Mean loss over the scored positions of batches."""
    total, count = loss_sum(language_model, head, batches, fitness)
    return total / max(count, 1)


class ProxyLoss:
    """L of equation (2) on proxy data: text, or text and image-text answers.

    Every scored position counts once. Half each would let a few answer tokens decide: a mean over
    16 of them varies ten times as much as one over 2,032 tokens of text.

    Args:
        adapter: of the dense model; its projector may be replaced later (`projector_moved`).
        fitness: "kl" against the dense model with its original projector, or "nll".
        data: "text" or "text_and_pairs".
        top: keep only so many most likely tokens of the dense model per position; None for all.
    """

    def __init__(
        self,
        adapter: Adapter,
        proxy: ProxyData,
        fitness: Fitness,
        data: str,
        top: int | None = None,
    ) -> None:
        self.adapter, self.fitness, self._proxy = adapter, fitness, proxy
        self.head = adapter.head
        self.text = text_loss_batches(adapter, proxy.segments)
        uses_pairs = data == "text_and_pairs" and proxy.pairs is not None
        self.pairs = pair_loss_batches(adapter, proxy) if uses_pairs else []
        if fitness == "kl":
            for batch in (*self.text, *self.pairs):
                remember_dense(adapter, self.head, [batch], top)

    def projector_moved(self) -> None:
        """Merge the images into the pairs' embeddings again, with the projector as it is now."""
        if self.pairs:
            moved = pair_loss_batches(self.adapter, self._proxy)
            for batch, new in zip(self.pairs, moved, strict=True):
                batch.inputs = new.inputs

    def __call__(self, language_model: nn.Module, share: float = 1.0) -> float:
        """The proxy loss of a (stitched) language model on the first `share` of the batches."""
        parts = [
            batches[: ceil(share * len(batches))] for batches in (self.text, self.pairs) if batches
        ]
        sums = [loss_sum(language_model, self.head, part, self.fitness) for part in parts]
        return sum(total for total, _ in sums) / max(sum(count for _, count in sums), 1)
