"""Losses of a pruned model on the proxy data, beside those of its dense model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from efficientllava.calibration.sample_losses import DenseReference, SampleLosses
from efficientllava.data.proxy import ProxyData
from efficientllava.models.families import Adapter
from efficientllava.parameters import SearchParameters
from efficientllava.progress import Progress, silent


class ProxyMeasures:
    """Remembers the dense model with its own projector; made before either changes.

    Every scored position counts once, of text and of answers alike.

    Attributes:
        dense_nll: negative log-likelihood of the dense model on the proxy data.
        positions: scored positions of the proxy data.
    """

    def __init__(
        self,
        adapter: Adapter,
        proxy: ProxyData,
        search: SearchParameters,
        progress: Progress = silent,
    ) -> None:
        self.fitness = search.fitness
        self._reference = DenseReference(adapter, proxy, search.fitness_data, progress)
        self.dense_nll = self._reference.dense.mean("nll")
        self.positions = int(self._reference.dense.positions.sum())

    def move_projector(self, adapter: Adapter, state: Mapping[str, torch.Tensor]) -> None:
        """Give the model an evolved projector; an empty state leaves its own."""
        if state:
            adapter.load_projector(state)
            self._reference.projector_moved()

    def loss(self, language_model: nn.Module) -> float:
        """The proxy loss that the search minimises (`search.fitness`)."""
        return self._reference(language_model).mean(self.fitness)

    def __call__(self, language_model: nn.Module) -> tuple[dict[str, float], SampleLosses]:
        """The proxy losses of a pruned language model as the record has them, and by sample."""
        losses = self._reference(language_model, "measuring")
        record = {
            "proxy_kl": losses.mean("kl"),
            "proxy_nll": losses.mean("nll"),
            "dense_nll": self.dense_nll,
            "proxy_loss": losses.mean(self.fitness),
        }
        return record, losses
