"""A linear layer whose weight is packed. Inference only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from efficientllava.errors import UserError
from efficientllava.sparse.format import PackedMatrix, pack, unpack
from efficientllava.sparse.layout import dtype_name, layout_of

PIECES = ("masks", "values", "offsets", "scales")
"""Tensors of a packed matrix, by their names in a module and in a checkpoint."""


class _WithoutBackward(torch.autograd.Function):
    """A product whose backward pass raises, where autograd would leave the layer out in silence."""

    @staticmethod
    def forward(  # type: ignore[override]
        context: Any, x: torch.Tensor, product: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        return product(x)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        raise UserError(
            "a packed layer has no backward pass",
            where="SparseLinear",
            remedy="train the dense checkpoint: efficientllava unpack FOLDER OUT",
        )


class SparseLinear(nn.Module):
    """y = x W^T + b with a packed W [out_features, in_features].

    It cannot be trained: a backward pass through it raises. Casts to bfloat16, float16 and float32
    pack the weight anew; int8 codes keep their dtype.

    Attributes:
        weight: empty; it has the device and dtype of the weight, and in a checkpoint it makes
            readers fail that do not know the format. `dense()` gives the matrix.
    """

    weight: torch.Tensor
    masks: torch.Tensor
    values: torch.Tensor
    offsets: torch.Tensor
    scales: torch.Tensor | None

    def __init__(self, packed: PackedMatrix, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        # registers the operator; a layer may be the first that needs numba
        import efficientllava.sparse.operators  # noqa: F401

        self.out_features, self.in_features = packed.rows, packed.columns
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        marker = torch.empty(0, dtype=packed.dtype, device=packed.values.device)
        self.register_buffer("weight", marker)
        self._put(packed)

    def _put(self, packed: PackedMatrix) -> None:
        for name in PIECES:
            self.register_buffer(name, packed.tensors.get(name))

    @classmethod
    def from_dense(cls, linear: nn.Linear, threads: int | None = None) -> SparseLinear:
        """Pack a linear layer without loss; the bias is shared.

        Raises:
            UserError: it has no dtype that can be packed.
        """
        packed = pack(linear.weight, threads=threads)
        layer = cls(packed, linear.bias).to(linear.weight.device)
        return layer.train(linear.training)

    @property
    def packed(self) -> PackedMatrix:
        """The weight, sharing memory."""
        tensors = (self.masks, self.values, self.offsets, self.scales)
        return PackedMatrix(self.out_features, self.in_features, *tensors)

    def dense(self) -> torch.Tensor:
        """The weight [out_features, in_features], unpacked; float32 where codes are int8."""
        return unpack(self.packed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            product: torch.Tensor = _WithoutBackward.apply(x, self._product)
            return product
        return self._product(x)

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.efficientllava.sparse_linear(
            x,
            self.masks,
            self.values,
            self.offsets,
            self.scales,
            self.bias,
            self.out_features,
            self.in_features,
        )
        return product

    def cast(self, dtype: torch.dtype) -> None:
        """Pack the weight anew in another dtype; what rounds to zero goes. int8 codes stay.

        Raises:
            UserError: the dtype cannot be packed.
        """
        if self.values.dtype in (dtype, torch.int8):
            return
        layout_of(dtype)
        device = self.values.device
        if device.type == "meta":
            raise UserError(
                f"has no values yet that could be cast to {dtype_name(dtype)}",
                where="SparseLinear on the meta device",
                remedy="load the checkpoint first",
            )
        for name, piece in pack(self.dense().to(dtype)).tensors.items():
            self.register_buffer(name, piece.to(device))
        self.weight = torch.empty(0, dtype=dtype, device=device)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> SparseLinear:
        """Move or cast; torch would cast the values alone, and masks of another width need more."""
        if self.values.dtype != torch.int8:
            self.cast(fn(self.weight).dtype)
        scales, codes = self.scales, self.weight
        super()._apply(fn, recurse)
        if scales is not None and self.scales is not None:
            self.scales = scales.to(self.scales.device)
            self.weight = codes.to(self.weight.device)
        return self

    def extra_repr(self) -> str:
        """Sizes, dtype and the share of zeros."""
        size = self.out_features * self.in_features
        sparsity = 1 - self.packed.kept / size if size else 0.0
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {dtype_name(self.values.dtype)}, "
            f"sparsity={sparsity:.3f}"
        )
