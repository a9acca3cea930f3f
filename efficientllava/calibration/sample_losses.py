"""KL divergence and negative log-likelihood of every sample in one pass, and paired errors."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from efficientllava.calibration.proxy_loss import (
    Distribution,
    Fitness,
    LossBatch,
    chunked_logits,
    hidden_states,
    kl_divergence,
    negative_log_likelihood,
    pair_loss_batches,
    text_loss_batches,
)
from efficientllava.data.proxy import IGNORED, ProxyData
from efficientllava.models.families import Adapter
from efficientllava.progress import Event, Progress, silent

logger = logging.getLogger(__name__)

FEW = 512
"""Scored positions below which costs or comparisons are mostly noise: a warning says so."""
HALF = 16
"""Scored positions with which a kind of data counts half of what it would with very many."""


def answer_weight(text: int, answers: int) -> float:
    """What a scored position of an answer counts, where one of text counts 1.

    The mean over a kind of data with n positions counts by n / (n + `HALF`). Were all positions
    alike, a few answers would drown in text; were both means, a handful could outvote it.

    Args:
        text, answers: scored positions of each kind.
    """
    return (text + HALF) / (answers + HALF)


def batch_weights(scored: Sequence[int], texts: int) -> list[float]:
    """What a scored position of every batch counts: see `answer_weight`.

    Args:
        scored: positions of every batch; the first `texts` batches are text, the others answers.
    """
    of_answers = answer_weight(sum(scored[:texts]), sum(scored[texts:]))
    return [1.0] * texts + [of_answers] * (len(scored) - texts)


def warn_of_few(positions: int, what: str) -> None:
    """Warn where something rests on few scored positions."""
    if positions < FEW:
        logger.warning(
            "%s on %d scored positions: fewer than %d are mostly noise; give more proxy data",
            what,
            positions,
            FEW,
        )


@dataclass(frozen=True)
class SampleLosses:
    """Sums over the scored positions of every sample, text segments first.

    Attributes:
        kl, nll: [n] float64, nats.
        positions: [n] scored positions, or what they count for.
        labelled: [n] those whose next token is known, which `nll` counts.
    """

    kl: np.ndarray
    nll: np.ndarray
    positions: np.ndarray
    labelled: np.ndarray

    def __getitem__(self, samples: slice) -> SampleLosses:
        return SampleLosses(
            *(getattr(self, each.name)[samples] for each in dataclasses.fields(self))
        )

    def sums(self, fitness: Fitness) -> tuple[np.ndarray, np.ndarray]:
        """[n] sums of a loss, and [n] the positions they run over."""
        return (self.kl, self.positions) if fitness == "kl" else (self.nll, self.labelled)

    def mean(self, fitness: Fitness) -> float:
        """The mean over all scored positions, nats."""
        total, count = self.sums(fitness)
        return float(total.sum() / max(float(count.sum()), 1.0))

    def weighted(self, weights: np.ndarray) -> SampleLosses:
        """With positions that count for more or less, [n] by sample."""
        return SampleLosses(
            *(getattr(self, each.name) * weights for each in dataclasses.fields(self))
        )

    def as_row(self) -> dict[str, list[float]]:
        """As JSON; floats come back bit for bit."""
        return {each.name: getattr(self, each.name).tolist() for each in dataclasses.fields(self)}

    @classmethod
    def from_row(cls, row: dict[str, list[float]]) -> SampleLosses:
        """From `as_row`."""
        return cls(**{name: np.array(values) for name, values in row.items()})

    @classmethod
    def joined(cls, parts: Sequence[SampleLosses]) -> SampleLosses:
        """The samples of several, one after the other."""
        columns = (
            np.concatenate([getattr(part, each.name) for part in parts])
            for each in dataclasses.fields(cls)
        )
        return cls(*columns)


@dataclass(frozen=True)
class Difference:
    """A paired difference of two mean losses, and its standard error, nats.

    Attributes:
        mean: below 0 where the first model is the better one.
        error: over samples; inf for a single sample.
    """

    mean: float
    error: float

    @property
    def better(self) -> bool:
        """Whether the first model is better by more than the error."""
        return self.mean < -self.error


def difference(first: SampleLosses, second: SampleLosses, fitness: Fitness = "kl") -> Difference:
    """The mean loss of one model minus another's on the same samples.

    The mean runs over positions; its error is that of a ratio estimator over samples, because
    positions of one sample are not independent.
    """
    (one, count), (other, _) = first.sums(fitness), second.sums(fitness)
    apart, positions = one - other, max(float(count.sum()), 1.0)
    mean = float(apart.sum()) / positions
    samples = len(apart)
    if samples < 2:
        return Difference(mean, float("inf"))
    squares = float(np.square(apart - mean * count).sum())
    return Difference(mean, sqrt(squares * samples / (samples - 1)) / positions)


class DenseReference:
    """What the dense model says, kept as hidden states: made before a weight changes.

    A hidden state is a hundredth of a distribution over the vocabulary; the head, which is not
    pruned, is applied again whenever a model is compared.

    Args:
        proxy: text segments are scored at every next token, pairs at their answers.
        data: "text" or "text_and_pairs", as `search.fitness_data`.
        progress: sees an event `name` for every batch.

    Attributes:
        batches: ready for scoring, text first.
        hidden: of each batch, the dense model's last hidden states [n, width] at its positions.
        dense: the dense model's own losses; its `kl` is 0.
    """

    def __init__(
        self,
        adapter: Adapter,
        proxy: ProxyData,
        data: str,
        progress: Progress = silent,
        name: str = "dense targets",
    ) -> None:
        self.head, self._adapter, self._proxy = adapter.head, adapter, proxy
        self._progress = progress
        uses_pairs = data == "text_and_pairs" and proxy.pairs is not None
        self.batches = text_loss_batches(adapter, proxy.segments) if len(proxy.segments) else []
        self._texts = len(self.batches)
        self.batches += pair_loss_batches(adapter, proxy) if uses_pairs else []
        self.hidden: list[torch.Tensor] = []
        parts = []
        for index, batch in enumerate(self.batches):
            with torch.no_grad():
                hidden = hidden_states(adapter.language_model, batch.inputs)[batch.positions]
            self.hidden.append(hidden)
            parts.append(self._losses(batch, hidden, None))
            progress(Event(name, index + 1, len(self.batches)))
        self.dense = SampleLosses.joined(parts)

    @property
    def weights(self) -> list[float]:
        """See `batch_weights`."""
        return batch_weights([int(batch.positions.sum()) for batch in self.batches], self._texts)

    def projector_moved(self) -> None:
        """Merge the images into the pairs' embeddings again, with the projector as it is now."""
        if len(self.batches) > self._texts:
            moved = pair_loss_batches(self._adapter, self._proxy)
            for batch, new in zip(self.batches[self._texts :], moved, strict=True):
                batch.inputs = new.inputs

    @torch.no_grad()
    def __call__(self, language_model: nn.Module, name: str | None = None) -> SampleLosses:
        """Both losses of a language model, in one pass.

        Args:
            name: of the events of progress, one for each batch; None for no events.
        """
        parts = []
        for index, (batch, dense) in enumerate(zip(self.batches, self.hidden, strict=True)):
            hidden = hidden_states(language_model, batch.inputs)[batch.positions]
            parts.append(self._losses(batch, hidden, dense))
            if name is not None:
                self._progress(Event(name, index + 1, len(self.batches)))
        return SampleLosses.joined(parts)

    @torch.no_grad()
    def _losses(
        self, batch: LossBatch, hidden: torch.Tensor, dense: torch.Tensor | None
    ) -> SampleLosses:
        kl, nll = [], []
        for rows, logits in chunked_logits(self.head, hidden):
            said = functional.log_softmax(logits, dim=-1)
            nll.append(negative_log_likelihood(said, batch.targets[rows]).double())
            if dense is not None:
                target = functional.log_softmax(self.head(dense[rows]).float(), dim=-1)
                kl.append(kl_divergence(Distribution.of(target), said).double())
        sample = batch.positions.nonzero()[:, 0].cpu().numpy()
        samples = batch.positions.shape[0]

        def summed(values: Sequence[torch.Tensor]) -> np.ndarray:
            if not values:
                return np.zeros(samples)
            return np.bincount(sample, torch.cat(list(values)).cpu().numpy(), samples)

        labelled = (batch.targets != IGNORED).cpu().numpy()
        return SampleLosses(
            summed(kl),
            summed(nll),
            np.bincount(sample, minlength=samples),
            np.bincount(sample, labelled, samples),
        )
