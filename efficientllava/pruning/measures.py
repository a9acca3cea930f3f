"""Losses of a pruned model on the proxy data, beside those of its dense model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from efficientllava.calibration.proxy_loss import Fitness, ProxyLoss, loss_sums, mean_loss
from efficientllava.data.proxy import ProxyData
from efficientllava.models.families import Adapter
from efficientllava.parameters import SearchParameters

KINDS: tuple[Fitness, ...] = ("kl", "nll")


class ProxyMeasures:
    """Remembers the dense model with its own projector; made before either changes.

    Attributes:
        dense_nll: negative log-likelihood of the dense model on the proxy data.
    """

    def __init__(self, adapter: Adapter, proxy: ProxyData, search: SearchParameters) -> None:
        self._fitness: Fitness = search.fitness
        self._proxy_loss = ProxyLoss(adapter, proxy, "kl", search.fitness_data)
        self.dense_nll = self._mean(adapter.language_model, "nll")

    def _mean(self, language_model: nn.Module, kind: Fitness) -> float:
        loss = self._proxy_loss
        means = [
            mean_loss(language_model, loss.head, batches, kind)
            for batches in (loss.text, loss.pairs)
            if batches
        ]
        return sum(means) / len(means)

    def move_projector(self, adapter: Adapter, state: Mapping[str, torch.Tensor]) -> None:
        """Give the model an evolved projector; an empty state leaves its own."""
        if state:
            adapter.load_projector(state)
            self._proxy_loss.projector_moved()

    def loss(self, language_model: nn.Module) -> float:
        """The proxy loss that the search minimises (`search.fitness`)."""
        return self._mean(language_model, self._fitness)

    def __call__(self, language_model: nn.Module) -> tuple[dict[str, float], float]:
        """The proxy losses of a pruned language model as the record has them (text and answers
        half each), and the mean loss over all scored positions together."""
        loss = self._proxy_loss
        sums = [
            loss_sums(language_model, loss.head, batches, KINDS)
            for batches in (loss.text, loss.pairs)
            if batches
        ]
        by_kind = dict(zip(KINDS, map(_means, zip(*sums, strict=True)), strict=True))
        record = {
            "proxy_kl": by_kind["kl"][0],
            "proxy_nll": by_kind["nll"][0],
            "dense_nll": self.dense_nll,
            "proxy_loss": by_kind[self._fitness][0],
        }
        return record, by_kind[self._fitness][1]


def _means(sums: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """The proxy loss as the search takes it, and the mean loss of all scored positions.

    The search counts text and answers half each. A choice between two models by that measure would
    follow the answers' few positions, whose mean varies more than the text's of thousands.

    Args:
        sums: of the text, and of the answers if there are any: the losses and their number.
    """
    means = [total / max(count, 1) for total, count in sums]
    positions = sum(count for _, count in sums)
    return sum(means) / len(means), sum(total for total, _ in sums) / max(positions, 1)
