"""The experts of a mixture, a layer for each matrix. Inference only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from efficientllava.models.families.matrices import EXPERTS
from efficientllava.sparse.linear import SparseLinear


class SparseExperts(nn.Module):
    """Computes what a module of transformers does that stacks experts' matrices in parameters.

    The layers of expert e have the names `e.part`. They are `SparseLinear`, or `nn.Linear` where a
    matrix would be larger packed.

    Attributes:
        parts: names of an expert's layers in the order of its matrices: gate and up apart, or both
            as one, then down.
        shapes: [rows, columns] of an expert's matrix, by the parameter that stacked them.
        num_experts: how many there are.
    """

    def __init__(
        self,
        experts: nn.Module,
        layers: Sequence[Mapping[str, nn.Module]],
        markers: Mapping[str, torch.Tensor],
    ) -> None:
        """Put layers in the place of stacked parameters.

        Args:
            experts: the module, on the meta device: its settings and its gate are used.
            layers: of each expert, by part.
            markers: empty tensors that a packed file has at the names of stacked ones.
        """
        super().__init__()
        # in a tuple, for as a module of this one it would be initialized, saved and moved
        self._dense_module = (experts,)
        self.parts, self.num_experts = tuple(layers[0]), len(layers)
        stacked = {name: experts.get_parameter(name) for name in EXPERTS}
        self.shapes = {name: tuple(each.shape[1:]) for name, each in stacked.items()}
        for number, parts in enumerate(layers):
            self.add_module(str(number), nn.ModuleDict(dict(parts)))
        for name, marker in markers.items():
            self.register_buffer(name, marker)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """The weighted sum of the outputs of each token's experts.

        Args:
            hidden_states: [tokens, width].
            top_k_index: [tokens, k], the experts of each token.
            top_k_weights: [tokens, k].

        Returns:
            [tokens, width], in the dtype of the hidden states; summed as transformers' grouped_mm.
        """
        tokens, k = top_k_index.shape
        chosen = top_k_index.reshape(-1)
        order = chosen.argsort(stable=True)
        counts = torch.bincount(chosen, minlength=self.num_experts).tolist()
        outputs = hidden_states.new_empty(tokens * k, hidden_states.shape[-1])
        for expert, pairs in enumerate(order.split(counts)):
            if len(pairs):
                outputs[pairs] = self._expert(expert, hidden_states[pairs // k])
        weighted = outputs.view(tokens, k, -1) * top_k_weights[..., None]
        return weighted.sum(dim=1).to(hidden_states.dtype)

    def _expert(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        *gate_up, down = self._layers(expert)
        products = [layer(x) for layer in gate_up]
        together = products[0] if len(products) == 1 else torch.cat(products, dim=-1)
        experts: Any = self._dense_module[0]
        output: torch.Tensor = down(experts._apply_gate(together))
        return output

    def _layers(self, expert: int) -> list[nn.Module]:
        layers: Any = self._modules[str(expert)]
        return [layers[part] for part in self.parts]

    def dense(self, parameter: str, expert: int) -> torch.Tensor:
        """A matrix of an expert [out, in], unpacked; see `SparseLinear.dense`.

        Args:
            parameter: one of `EXPERTS`.
        """
        *gate_up, down = self._layers(expert)
        layers: Any = gate_up if parameter == EXPERTS[0] else [down]
        weights = [
            layer.dense() if isinstance(layer, SparseLinear) else layer.weight for layer in layers
        ]
        return weights[0] if len(weights) == 1 else torch.cat(weights)

    def dequantized(self, dtype: torch.dtype | None) -> nn.Module:
        """The module that this one took the place of, with unpacked weights."""
        experts = self._dense_module[0]
        for name in EXPERTS:
            matrices = [self.dense(name, each).to(dtype) for each in range(self.num_experts)]
            setattr(experts, name, nn.Parameter(torch.stack(matrices), requires_grad=False))
        return experts.train(self.training)

    def cast(self, dtype: torch.dtype) -> None:
        """Note the dtype of the unpacked weights: its layers are cast by themselves."""
        for name, marker in self.named_buffers(recurse=False):
            self.register_buffer(name, marker.to(dtype))
