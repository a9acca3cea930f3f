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

from efficientllava.sparse.cpu.arguments import Packed
from efficientllava.sparse.cpu.huge_pages import HugePages
from efficientllava.sparse.cpu.linear import dense_product, sparse_products
from efficientllava.sparse.linear import PIECES, SparseLinear
from efficientllava.sparse.operators import require_input, require_matrix

SHARE_AN_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))
"""Layers of a module that are called one after the other with the same tensor."""


def for_inference(model: nn.Module, huge_pages: bool = True) -> nn.Module:
    """Let a model's layers take the kernels of this package on a CPU as directly as possible.

    Sparse layers that share an input compute their products in one call. Linear layers that are not
    sparse, the head among them, multiply up to 8 tokens by a kernel that reads weights as fast as
    memory gives them. Backward passes, torch.compile and other devices go on as before.

    Args:
        huge_pages: copy weights on the CPU, matrix by matrix, into pages of 2 MiB where the system
            has them: decoding gets up to 1.4 times faster. Without, they stay where they were
            loaded, shared with other processes where that is a file.

    Returns:
        The model, changed in place. Done twice it is as done once.
    """
    memory = HugePages() if huge_pages else None
    for module in model.modules():
        if memory is not None and type(module) in (SparseLinear, nn.Linear):
            _place(module, memory)
    for module in model.modules():
        for names in SHARE_AN_INPUT:
            layers = [getattr(module, name, None) for name in names]
            if all(type(layer) is SparseLinear for layer in layers):
                _share(layers)
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = DenseLinear
        elif type(module) is SparseLinear:
            _share([module])
    return model


def _place(module: nn.Module, memory: HugePages) -> None:
    if isinstance(module, nn.Linear):
        module.weight.data = memory.place(module.weight.data)
        return
    for name in PIECES:
        if (piece := getattr(module, name)) is not None:
            module.register_buffer(name, memory.place(piece))


def _share(layers: Sequence[Any]) -> None:
    if len({(layer.in_features, layer.values.dtype) for layer in layers}) == 1:
        shared = _SharedInput(layers)
        for place, layer in enumerate(layers):
            layer.__class__ = SparseLinearInGroup
            layer.shared, layer.place = shared, place


class DenseLinear(nn.Linear):
    """A linear layer with a faster product of a few tokens on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        if learns or not (x.is_cpu and weight.is_cpu):
            return linear(x, weight, self.bias)
        if torch.compiler.is_compiling() or type(x) is not torch.Tensor:
            product: torch.Tensor = torch.ops.efficientllava.dense_linear(x, weight, self.bias)
            return product
        return dense_product(x, weight, self.bias)


class SparseLinearInGroup(SparseLinear):
    """A sparse layer whose neighbours multiply the same input.

    Attributes:
        shared: the neighbours, and products that they have not asked for yet.
        place: of this layer among them.
    """

    shared: _SharedInput
    place: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling() or type(x) is not torch.Tensor or not x.is_cpu:
            return super().forward(x)
        product = self.shared.product(self.place, x)
        return super().forward(x) if product is None else product


class _SharedInput:
    """Layers that share an input: the first that is called computes the products of all.

    A product is given once, to the layer whose it is, for the same tensor with the same contents.
    """

    def __init__(self, layers: Sequence[SparseLinear]) -> None:
        self.layers, self.columns = list(layers), layers[0].in_features
        self.matrices: list[Packed] = []
        # by thread: the input, its version, products by the place of their layer
        self.waiting: dict[int, tuple[torch.Tensor, int, dict[int, torch.Tensor]]] = {}

    def product(self, place: int, x: torch.Tensor) -> torch.Tensor | None:
        """x times a layer; None where the layer itself has to say why that cannot be."""
        if len(self.layers) == 1:
            products = self._products(x)
            return products[0] if products else None
        thread, version = threading.get_ident(), 0 if x.is_inference() else x._version
        known, of_version, waiting = self.waiting.get(thread, (None, 0, {}))
        if known is not x or of_version != version or place not in waiting:
            waiting = dict(enumerate(self._products(x)))
            if not waiting:
                return None
            self.waiting[thread] = x, version, waiting
        product = waiting.pop(place)
        if not waiting:
            del self.waiting[thread]
        return product

    def _products(self, x: torch.Tensor) -> list[torch.Tensor]:
        if torch.is_grad_enabled() and x.requires_grad:
            return []
        require_input(x, self.columns)
        matrices = self.current()
        return sparse_products(x, matrices, self.columns) if matrices else []

    def current(self) -> list[Packed]:
        """The layers' tensors, checked when they are new; none that do not fit each other."""
        if self.matrices and all(map(_same_tensors, self.layers, self.matrices)):
            return self.matrices
        matrices = [_matrix(layer) for layer in self.layers]
        for matrix in matrices:
            require_matrix(matrix, self.columns)
        together = {(matrix.values.dtype, matrix.values.device) for matrix in matrices}
        fits = len(together) == 1 and matrices[0].values.is_cpu
        self.matrices = matrices if fits else []
        return self.matrices


def in_one_call(x: torch.Tensor, groups: Sequence[Sequence[nn.Module]]) -> list[torch.Tensor]:
    """x times the layers of several groups that share their input, in order.

    Args:
        groups: layers that `for_inference` let share an input, group by group.

    Returns:
        Nothing where one call cannot compute them: the layers themselves have to.
    """
    if torch.compiler.is_compiling() or type(x) is not torch.Tensor or not x.is_cpu:
        return []
    if torch.is_grad_enabled() and x.requires_grad:
        return []
    matrices: list[Packed] = []
    columns = 0
    for layers in groups:
        first = layers[0]
        if not isinstance(first, SparseLinearInGroup) or len(first.shared.layers) != len(layers):
            return []
        columns = first.in_features
        if not (together := first.shared.current()):
            return []
        matrices += together
    if len({matrix.values.dtype for matrix in matrices}) != 1:
        return []
    require_input(x, columns)
    return sparse_products(x, matrices, columns)


def _matrix(layer: SparseLinear) -> Packed:
    tensors = (layer.masks, layer.values, layer.offsets, layer.scales, layer.bias)
    return Packed(*tensors, layer.out_features)


def _same_tensors(layer: SparseLinear, matrix: Packed) -> bool:
    pieces = layer._buffers  # an attribute takes a module ten times as long
    return (
        pieces["masks"] is matrix.masks
        and pieces["values"] is matrix.values
        and pieces["offsets"] is matrix.offsets
        and pieces["scales"] is matrix.scales
        and layer._parameters.get("bias") is matrix.bias
    )
