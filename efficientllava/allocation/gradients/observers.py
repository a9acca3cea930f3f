"""What is kept of a backward pass: every matrix's inputs meet the gradients of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn import functional

from efficientllava.allocation.gradients.experts import one_by_one
from efficientllava.errors import UserError
from efficientllava.models.families import Adapter, Matrix

Changes = Callable[[Matrix], Iterator[torch.Tensor]]
"""The changes dW [out, in] of a matrix that are priced, in float32 on the model's device."""


@dataclass
class Sums:
    """Sums over all tokens of one or more batches, in float64; of several, weighted ones.

    Attributes:
        squares: [K][L] sum of (g . dW x)^2, squared at each token.
        linear: [K][L] sum of g . dW x.
        gradient: [K] sum of |g|^2.
        output: [K] sum of |W x|^2.
        tokens: [K] how many tokens entered (padding left out; of an expert those routed to it).
        positions: scored positions whose losses were added.
    """

    squares: list[list[float]]
    linear: list[list[float]]
    gradient: list[float]
    output: list[float]
    tokens: list[float]
    positions: float

    @classmethod
    def joined(cls, parts: Sequence[Sums], weights: Sequence[float]) -> Sums:
        """The weighted sums over all batches, added in their order."""
        columns = (
            _added([getattr(part, each.name) for part in parts], weights) for each in fields(cls)
        )
        return cls(*columns)


def _added(values: Sequence[Any], weights: Sequence[float]) -> Any:
    """The weighted sum of numbers, or of each place of nested lists."""
    if isinstance(values[0], list):
        return [_added(places, weights) for places in zip(*values, strict=True)]
    return sum(value * weight for value, weight in zip(values, weights, strict=True))


def _overflow(matrix: Matrix, what: str) -> NoReturn:
    remedy = "check the checkpoint's weights and the proxy data"
    if matrix.weight.dtype == torch.float16:
        remedy = "float16 overflows here: convert the model to bfloat16 or float32 first"
    raise UserError(what, where=matrix.name, remedy=remedy)


class Observer:
    """Brings the input and the output's gradient of every matrix together: see `see`."""

    def __init__(self, adapter: Adapter) -> None:
        self.backward = False
        self._adapter = adapter
        self._inputs: dict[str, torch.Tensor] = {}
        self._waiting: dict[str, torch.Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks on every prunable matrix, taken away at the end."""
        experts: dict[nn.Module, dict[str, Matrix]] = {}
        with ExitStack() as hooks:
            for matrix in self._adapter.matrices:
                if matrix.expert is not None:
                    experts.setdefault(matrix.module, {})[matrix.name] = matrix
                    continue
                keep, ask = self._keeping(matrix), self._asking(matrix)
                hooks.callback(matrix.module.register_forward_pre_hook(keep).remove)
                hooks.callback(matrix.module.register_forward_hook(ask).remove)
            for module, matrices in experts.items():
                hooks.enter_context(one_by_one(module, list(matrices.values()), self))
            yield

    def _keeping(self, matrix: Matrix) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda module, args: self.keep(matrix, args[0])

    def _asking(self, matrix: Matrix) -> Callable[..., None]:
        return lambda module, args, output: self.ask(matrix, output)

    def keep(self, matrix: Matrix, given: torch.Tensor) -> None:
        """Before a product of rows [..., in]."""
        # only when the block is computed again: the first pass would keep all blocks' inputs
        if self.backward:
            self._inputs[matrix.name] = given.detach()
            # a block's last gradient arrives before the block is computed again
            if (waiting := self._waiting.pop(matrix.name, None)) is not None:
                self._join(matrix, waiting)

    def ask(self, matrix: Matrix, output: torch.Tensor) -> None:
        """After a product, whose gradient [..., out] is asked for."""
        if not self.backward:
            output.register_hook(lambda gradient: self._arrived(matrix, gradient))

    @torch.no_grad()
    def pass_over(self, matrix: Matrix) -> None:
        """No token of the batch reaches an expert."""
        if self.backward:
            self.miss(matrix)

    def _arrived(self, matrix: Matrix, gradient: torch.Tensor) -> None:
        if matrix.name in self._inputs:
            self._join(matrix, gradient)
        else:
            self._waiting[matrix.name] = gradient

    @torch.no_grad()
    def _join(self, matrix: Matrix, gradient: torch.Tensor) -> None:
        given, gradient = self._inputs.pop(matrix.name).float(), gradient.float()
        if not bool(torch.isfinite(gradient).all()):
            _overflow(matrix, "the gradient of its output is NaN or inf")
        self.see(matrix, given, gradient)

    def see(self, matrix: Matrix, given: torch.Tensor, gradient: torch.Tensor) -> None:
        """The inputs [..., in] of a matrix and the gradients of its outputs [..., out], float32."""
        raise NotImplementedError

    def miss(self, matrix: Matrix) -> None:
        """An expert that no token of the batch reaches."""
        raise NotImplementedError


class RowSquares(Observer):
    """Adds up the squared gradients of every row's outputs."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__(adapter)
        self.squares: dict[str, torch.Tensor] = {}

    def see(self, matrix: Matrix, given: torch.Tensor, gradient: torch.Tensor) -> None:
        """See `Observer`."""
        squares = gradient.flatten(0, -2).square().sum(0, dtype=torch.float64)
        if not bool(torch.isfinite(squares).all()):
            _overflow(matrix, "the squares of its gradients are too large for float32")
        self.squares[matrix.name] = squares

    def miss(self, matrix: Matrix) -> None:
        """See `Observer`."""
        self.squares[matrix.name] = torch.zeros(len(matrix.weight), dtype=torch.float64)


class Prices(Observer):
    """Prices the changes of every matrix."""

    def __init__(self, adapter: Adapter, changes: Changes) -> None:
        super().__init__(adapter)
        self._changes = changes
        self._squares: dict[str, list[float]] = {}
        self._linear: dict[str, list[float]] = {}
        self._gradient: dict[str, float] = {}
        self._output: dict[str, float] = {}
        self._routed: dict[str, int] = {}

    def miss(self, matrix: Matrix) -> None:
        """See `Observer`: its changes cost nothing."""
        nothing = [0.0 for _ in self._changes(matrix)]
        self._squares[matrix.name], self._linear[matrix.name] = nothing, list(nothing)
        self._gradient[matrix.name] = self._output[matrix.name] = 0.0
        self._routed[matrix.name] = 0

    def see(self, matrix: Matrix, given: torch.Tensor, gradient: torch.Tensor) -> None:
        """See `Observer`."""
        name = matrix.name
        if matrix.expert is not None:
            self._routed[name] = len(given)
        squares, linear = [], []
        for change in self._changes(matrix):
            moved = torch.linalg.vecdot(functional.linear(given, change), gradient).double()
            squares.append(moved.square().sum())
            linear.append(moved.sum())
        # asked for at once: the host waits for the device here
        self._squares[name] = torch.stack(squares).tolist() if squares else []
        self._linear[name] = torch.stack(linear).tolist() if linear else []
        self._gradient[name] = float(gradient.square().sum(dtype=torch.float64))
        output = functional.linear(given, matrix.weight.float()) if not squares else given[..., :0]
        self._output[name] = float(output.square().sum(dtype=torch.float64))
        sums = (*self._squares[name], *self._linear[name], self._gradient[name])
        if not all(map(isfinite, (*sums, self._output[name]))):
            _overflow(matrix, "the squares of its gradients or outputs are too large for float32")

    def sums(self, tokens: int, positions: int) -> Sums:
        """What was gathered, in the order of the matrices."""
        names = [matrix.name for matrix in self._adapter.matrices]
        return Sums(
            [self._squares[name] for name in names],
            [self._linear[name] for name in names],
            [self._gradient[name] for name in names],
            [self._output[name] for name in names],
            [self._routed.get(name, tokens) for name in names],
            positions,
        )
