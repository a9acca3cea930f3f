"""Makes a loaded model decode faster: one call for layers that share an input, dense layers too.

Weights, names and `save_pretrained` stay as they are.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from efficientllava.sparse.linear import SparseLinear

SHARE_AN_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of a module that are called one after the other with the same tensor."""


def for_inference(model: nn.Module) -> nn.Module:
    """Let a model's layers take the kernels of this package where these are faster.

    Sparse layers that share an input compute their products in one call. Linear layers that are not
    sparse, the head among them, multiply up to 8 tokens on a CPU by a kernel that reads weights as
    fast as memory gives them; a backward pass, more tokens and other devices go on as before.

    Returns:
        The model, changed in place. Done twice it is as done once.
    """
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = DenseLinear
        for names in SHARE_AN_INPUT:
            layers = [getattr(module, name, None) for name in names]
            if all(type(layer) is SparseLinear for layer in layers):
                _share(layers)
    return model


def _share(layers: Sequence[Any]) -> None:
    if len({(layer.in_features, layer.values.dtype) for layer in layers}) == 1:
        shared = _SharedInput(layers)
        for layer in layers:
            layer.__class__ = SharedInputLinear
            layer.shared = shared


class DenseLinear(nn.Linear):
    """A linear layer with a faster product of a few tokens on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        learns = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if learns or not x.is_cpu or not self.weight.is_cpu:
            return linear(x, self.weight, self.bias)
        product: torch.Tensor = torch.ops.efficientllava.dense_linear(x, self.weight, self.bias)
        return product


class SharedInputLinear(SparseLinear):
    """A sparse layer whose neighbours multiply the same input.

    Attributes:
        shared: the neighbours, and products that they have not asked for yet.
    """

    shared: _SharedInput

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling() or not x.is_cpu:
            return super().forward(x)
        product = self.shared.product(self, x)
        return super().forward(x) if product is None else product


class _SharedInput:
    """Layers that share an input: the first that is called computes the products of all.

    A product is given once, to the layer whose it is, for the same tensor with the same contents.
    """

    def __init__(self, layers: Sequence[SparseLinear]) -> None:
        self.layers = list(layers)
        # by thread: the input, its version, products by the place of their layer
        self.waiting: dict[int, tuple[torch.Tensor, int, dict[int, torch.Tensor]]] = {}

    def product(self, layer: SparseLinear, x: torch.Tensor) -> torch.Tensor | None:
        """x times the layer; None where that needs more than this package's kernels."""
        thread, version = threading.get_ident(), 0 if x.is_inference() else x._version
        place = next(index for index, each in enumerate(self.layers) if each is layer)
        known, of_version, products = self.waiting.get(thread, (None, 0, {}))
        if known is not x or of_version != version or place not in products:
            products = self._products(x)
            if not products:
                return None
            self.waiting[thread] = x, version, products
        product = products.pop(place)
        if not products:
            del self.waiting[thread]
        return product

    def _products(self, x: torch.Tensor) -> dict[int, torch.Tensor]:
        layers = self.layers
        if torch.is_grad_enabled() and x.requires_grad:
            return {}  # the layer itself says that it cannot be trained
        if len({(layer.values.dtype, layer.values.device) for layer in layers}) > 1:
            return {}  # they were cast or moved one by one
        scales = [layer.scales for layer in layers if layer.scales is not None]
        products = torch.ops.efficientllava.sparse_linears(
            x,
            [layer.masks for layer in layers],
            [layer.values for layer in layers],
            [layer.offsets for layer in layers],
            scales,
            [layer.bias for layer in layers],
            [layer.out_features for layer in layers],
            layers[0].in_features,
        )
        return dict(enumerate(products))
