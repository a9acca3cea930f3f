"""The experts of a mixture, a layer for each matrix. Inference only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from efficientllava.models.families.matrices import EXPERTS
from efficientllava.sparse.inference import in_one_call
from efficientllava.sparse.linear import SparseLinear


class SparseExperts(nn.Module):
    """Computes what a module of transformers does that stacks experts' matrices in parameters.

    Gate and up of an expert are one call where `for_inference` has been; of a single token those of
    all its experts.

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
        experts = [expert for expert, count in enumerate(counts) if count]
        sizes = [counts[expert] for expert in experts]
        gate_up = self._gate_up(experts, sizes, hidden_states, order // k)
        dense: Any = self._dense_module[0]
        gated = dense._apply_gate(gate_up).split(sizes)
        downs = [self._layers(expert)[-1] for expert in experts]
        products = torch.cat([down(rows) for down, rows in zip(downs, gated, strict=True)])
        outputs = torch.empty_like(products)
        outputs[order] = products
        weighted = outputs.view(tokens, k, -1) * top_k_weights[..., None]
        return weighted.sum(dim=1).to(hidden_states.dtype)

    def _gate_up(
        self,
        experts: Sequence[int],
        sizes: Sequence[int],
        hidden_states: torch.Tensor,
        tokens: torch.Tensor,
    ) -> torch.Tensor:
        """Gate and up of every pair of a token and its expert [pairs, 2 * width], by expert.

        Args:
            sizes: tokens of each expert.
            tokens: of the pairs.
        """
        layers = [self._layers(expert)[:-1] for expert in experts]
        if len(hidden_states) == 1 and (products := in_one_call(hidden_states, layers)):
            return torch.cat(products, dim=-1).view(len(experts), -1)
        rows = hidden_states[tokens].split(sizes)
        together = [
            torch.cat([layer(x) for layer in parts], dim=-1)
            for parts, x in zip(layers, rows, strict=True)
        ]
        return torch.cat(together)

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


def dense_experts(experts: nn.Module) -> SparseExperts:
    """A module of transformers with a dense layer for each matrix; the weights are shared."""
    weights = {name: experts.get_parameter(name) for name in EXPERTS}
    layers = [
        {name: _linear(weight[expert]) for name, weight in weights.items()}
        for expert in range(len(weights[EXPERTS[0]]))
    ]
    return SparseExperts(experts, layers, {})


def _linear(weight: torch.Tensor) -> nn.Linear:
    rows, columns = weight.shape
    layer = nn.Linear(columns, rows, bias=False, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    return layer
