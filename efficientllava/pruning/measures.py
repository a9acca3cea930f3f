"""Losses of a pruned model on the proxy data, beside those of its dense model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from efficientllava.calibration.proxy_loss import ProxyLoss, loss_sum
from efficientllava.data.proxy import ProxyData
from efficientllava.models.families import Adapter
from efficientllava.parameters import SearchParameters


class ProxyMeasures:
    """Remembers the dense model with its own projector; made before either changes.

    Attributes:
        dense_nll: negative log-likelihood of the dense model on the proxy data.
    """

    def __init__(self, adapter: Adapter, proxy: ProxyData, search: SearchParameters) -> None:
        self._fitness = search.fitness
        self._losses = {
            name: ProxyLoss(adapter, proxy, name, search.fitness_data) for name in ("kl", "nll")
        }
        self.dense_nll = self._losses["nll"](adapter.language_model)

    def move_projector(self, adapter: Adapter, state: Mapping[str, torch.Tensor]) -> None:
        """Give the model an evolved projector; an empty state leaves its own."""
        if state:
            adapter.load_projector(state)
            for loss in self._losses.values():
                loss.projector_moved()

    def loss(self, language_model: nn.Module) -> float:
        """The proxy loss that the search minimises (`search.fitness`)."""
        return self._losses[self._fitness](language_model)

    def __call__(self, language_model: nn.Module) -> tuple[dict[str, float], float]:
        """The proxy losses of a pruned language model as the record has them (text and answers
        half each), and the mean loss over all scored positions together."""
        values, by_position = {}, {}
        for name, loss in self._losses.items():
            values[name], by_position[name] = _losses(loss, language_model)
        record = {
            "proxy_kl": values["kl"],
            "proxy_nll": values["nll"],
            "dense_nll": self.dense_nll,
            "proxy_loss": values[self._fitness],
        }
        return record, by_position[self._fitness]


def _losses(loss: ProxyLoss, language_model: nn.Module) -> tuple[float, float]:
    """The proxy loss as the search takes it, and the mean loss of all scored positions.

    The search counts text and answers half each. A choice between two models by that measure would
    follow the answers' few positions, whose mean varies more than the text's of thousands.
    """
    sums = [
        loss_sum(language_model, loss.head, batches, loss.fitness)
        for batches in (loss.text, loss.pairs)
        if batches
    ]
    means = [total / max(count, 1) for total, count in sums]
    positions = sum(count for _, count in sums)
    return sum(means) / len(means), sum(total for total, _ in sums) / max(positions, 1)
