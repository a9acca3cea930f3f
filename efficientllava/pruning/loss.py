"""The proxy loss L(alpha, W_p): how far a pruned language model is from what is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from efficientllava.data.proxy import IGNORED, ProxyData
from efficientllava.models.adapter import Adapter
from efficientllava.pruning.calibration import (
    LanguageInputs,
    language_inputs,
    pair_batches,
    text_batches,
)

Fitness = Literal["kl", "nll"]
Head = Callable[[torch.Tensor], torch.Tensor]
"""Hidden states [n, d] to logits [n, vocabulary]."""

ROWS_PER_CHUNK = 4096
LOGITS_PER_CHUNK = 4096 * 2560
"""Logits are formed for few positions at a time: vocabulary x tokens never materialises."""


def negative_log_likelihood(log_probabilities: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """-log p(wanted) per position [n]; positions without a wanted token (IGNORED) count 0."""
    return functional.nll_loss(log_probabilities, wanted, ignore_index=IGNORED, reduction="none")


@dataclass(frozen=True)
class Distribution:
    """What the dense model says at n positions.

    Attributes:
        probabilities: p [n, vocabulary].
        negative_entropy: sum p ln p [n].
    """

    probabilities: torch.Tensor
    negative_entropy: torch.Tensor

    @classmethod
    def of(cls, log_probabilities: torch.Tensor) -> Distribution:
        """From log-probabilities [n, vocabulary]."""
        probabilities = log_probabilities.exp()
        return cls(probabilities, torch.linalg.vecdot(probabilities, log_probabilities))

    def __getitem__(self, rows: slice | torch.Tensor) -> Distribution:
        return Distribution(self.probabilities[rows], self.negative_entropy[rows])


def kl_divergence(dense: Distribution, pruned: torch.Tensor) -> torch.Tensor:
    """KL(dense || pruned) = sum p ln p - sum p ln q per position [n].

    Split like this it reads the vocabulary twice, not six times as `kl_div` does.

    Args:
        pruned: log-probabilities ln q [n, vocabulary].
    """
    cross = torch.einsum("nv,nv->n", dense.probabilities, pruned)
    return dense.negative_entropy - cross


@dataclass
class LossBatch:
    """A proxy batch ready for scoring.

    Attributes:
        inputs: of the language model.
        positions: [B, T] bool, where a next token is scored.
        wanted: [n] int64, the next tokens at those positions (IGNORED where there is none).
        dense: what the dense model says at those positions, or None.
    """

    inputs: LanguageInputs
    positions: torch.Tensor
    wanted: torch.Tensor
    dense: Distribution | None = None


def hidden_states(language_model: nn.Module, inputs: LanguageInputs) -> torch.Tensor:
    """The language model's last hidden states [B, T, d]."""
    output = language_model(**{**inputs.arguments, "use_cache": False})
    states: torch.Tensor = output.last_hidden_state
    return states


def log_probabilities(head: Head, hidden: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Log-probabilities of the next token for rows [n, d], in chunks."""
    vocabulary = head(hidden[:0]).shape[-1]
    step = min(ROWS_PER_CHUNK, max(1, LOGITS_PER_CHUNK // vocabulary))
    for start in range(0, hidden.shape[0], step):
        rows = slice(start, start + step)
        yield rows, functional.log_softmax(head(hidden[rows]).float(), dim=-1)


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
        inputs = language_inputs(adapter, batch)
        result.append(LossBatch(inputs, positions, next_tokens(ids, positions)))
    return result


def pair_loss_batches(adapter: Adapter, proxy: ProxyData) -> list[LossBatch]:
    """Batches that score the answers of image-text pairs, through the projector as it is."""
    result = []
    for batch, pairs in pair_batches(proxy.pairs) if proxy.pairs is not None else ():
        positions = pairs.answer_positions()
        wanted = next_tokens(pairs.labels, positions)
        result.append(LossBatch(language_inputs(adapter, batch), positions, wanted))
    return result


@torch.no_grad()
def remember_dense(adapter: Adapter, head: Head, batches: Sequence[LossBatch]) -> Distribution:
    """Keep what the dense model says as the target of the KL divergence.

    Returns:
        The targets of all batches, one after the other.
    """
    for batch in batches:
        hidden = hidden_states(adapter.language_model, batch.inputs)[batch.positions]
        batch.dense = _joined(
            [Distribution.of(chunk) for _, chunk in log_probabilities(head, hidden)]
        )
    return _joined([batch.dense for batch in batches if batch.dense is not None])


def _joined(parts: Sequence[Distribution]) -> Distribution:
    if len(parts) == 1:
        return parts[0]
    return Distribution(
        torch.cat([part.probabilities for part in parts]),
        torch.cat([part.negative_entropy for part in parts]),
    )


@torch.no_grad()
def mean_loss(
    language_model: nn.Module, head: Head, batches: Sequence[LossBatch], fitness: Fitness
) -> float:
    """Mean loss over the scored positions of batches, accumulated in float64."""
    total, count = 0.0, 0
    for batch in batches:
        hidden = hidden_states(language_model, batch.inputs)[batch.positions]
        for rows, pruned in log_probabilities(head, hidden):
            wanted = batch.wanted[rows]
            if fitness == "kl":
                assert batch.dense is not None, "remember_dense comes first"
                losses = kl_divergence(batch.dense[rows], pruned)
                count += losses.numel()
            else:
                losses = negative_log_likelihood(pruned, wanted)
                count += int((wanted != IGNORED).sum())
            total += float(losses.sum(dtype=torch.float64))
    return total / max(count, 1)


class ProxyLoss:
    """L of equation (2) on proxy data: text, or the mean of text and image-text answers.

    Text and answers count half each: answers are few and would drown among the text's tokens.

    Args:
        adapter: of the dense model; its projector may be replaced later (`projector_moved`).
        fitness: "kl" against the dense model with its original projector, or "nll".
        data: "text" or "text_and_pairs".
    """

    def __init__(self, adapter: Adapter, proxy: ProxyData, fitness: Fitness, data: str) -> None:
        self.adapter, self.fitness, self._proxy = adapter, fitness, proxy
        self.head = adapter.head
        self.text = text_loss_batches(adapter, proxy.segments)
        uses_pairs = data == "text_and_pairs" and proxy.pairs is not None
        self.pairs = pair_loss_batches(adapter, proxy) if uses_pairs else []
        if fitness == "kl":
            for batch in (*self.text, *self.pairs):
                remember_dense(adapter, self.head, [batch])

    def projector_moved(self) -> None:
        """Merge the images into the pairs' embeddings again, with the projector as it is now."""
        if self.pairs:
            moved = pair_loss_batches(self.adapter, self._proxy)
            for batch, new in zip(self.pairs, moved, strict=True):
                batch.inputs = new.inputs

    def __call__(self, language_model: nn.Module, share: float = 1.0) -> float:
        """The proxy loss of a (stitched) language model on the first `share` of the batches."""
        parts = [
            mean_loss(
                language_model, self.head, batches[: ceil(share * len(batches))], self.fitness
            )
            for batches in (self.text, self.pairs)
            if batches
        ]
        return sum(parts) / len(parts)
