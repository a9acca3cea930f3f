"""What a pruned model costs on the proxy data, beside the dense model it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from efficientllava.calibration.proxy_loss import ProxyLoss
from efficientllava.calibration.structural_risk import COMPLEXITIES, structural_risk
from efficientllava.data.proxy import ProxyData
from efficientllava.models.families import Adapter
from efficientllava.parameters import SearchParameters


class ProxyMeasures:
    """Remembers the dense model with its own projector; made before either changes."""

    def __init__(self, adapter: Adapter, proxy: ProxyData, search: SearchParameters) -> None:
        self._search = search
        self._losses = {
            name: ProxyLoss(adapter, proxy, name, search.fitness_data) for name in ("kl", "nll")
        }

    def move_projector(self, adapter: Adapter, state: Mapping[str, torch.Tensor]) -> None:
        """Give the model an evolved projector; an empty state leaves its own."""
        if state:
            adapter.projector.load_state_dict(dict(state))
            for loss in self._losses.values():
                loss.projector_moved()

    def loss(self, language_model: nn.Module) -> float:
        """The proxy loss that the search minimises (`search.fitness`)."""
        return self._losses[self._search.fitness](language_model)

    def __call__(
        self, language_model: nn.Module, rows: Sequence[Mapping[str, Any]]
    ) -> dict[str, float]:
        """Both proxy losses, the complexity and the structural risk of a pruned language model.

        Args:
            rows: its matrices, as `sequential.matrix_row`.
        """
        search = self._search
        values = {name: loss(language_model) for name, loss in self._losses.items()}
        complexity = COMPLEXITIES[search.complexity]([row["norm_ratio"] for row in rows])
        return {
            "proxy_kl": values["kl"],
            "proxy_nll": values["nll"],
            "proxy_loss": values[search.fitness],
            "complexity": complexity,
            "risk": structural_risk(values[search.fitness], complexity, search.eta),
        }
