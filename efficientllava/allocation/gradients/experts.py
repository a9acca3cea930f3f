"""The experts of a mixture run one after another, so that the product of each can be watched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from efficientllava.models.families import Matrix


class Watcher(Protocol):
    """Sees the products of experts, and which experts have none."""

    def keep(self, matrix: Matrix, given: torch.Tensor) -> None:
        """Before a product of rows [n, in]."""

    def ask(self, matrix: Matrix, output: torch.Tensor) -> None:
        """After a product, whose output is [n, out]."""

    def pass_over(self, matrix: Matrix) -> None:
        """No token reaches the expert."""


@contextmanager
def one_by_one(module: nn.Module, matrices: Sequence[Matrix], watcher: Watcher) -> Iterator[None]:
    """While this lasts, a module of experts runs as transformers' eager loop over them does.

    Args:
        module: called with hidden states [n, width], the experts chosen for each [n, k] and their
            weights [n, k].
        matrices: of its experts: gate and up, then down, expert after expert.
    """

    def product(matrix: Matrix, given: torch.Tensor) -> torch.Tensor:
        watcher.keep(matrix, given)
        output = functional.linear(given, matrix.weight)
        watcher.ask(matrix, output)
        return output

    def forward(hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        made: Any = module
        pairs = list(zip(matrices[::2], matrices[1::2], strict=True))
        hits = set(chosen.unique().tolist())
        # first: a block that is computed again ends at the last product that is needed
        for matrix in matrices:
            if matrix.expert not in hits:
                watcher.pass_over(matrix)
        output = torch.zeros_like(hidden)
        for gate_up, down in pairs:
            if (expert := gate_up.expert) is None or expert not in hits:
                continue
            place, token = torch.where(chosen.T.eq(expert))
            rows = product(down, made._apply_gate(product(gate_up, hidden[token])))
            rows = rows * weights[token, place, None]
            output = output.index_add(0, token, rows.to(output.dtype))
        return output

    # an attribute of the module stands before its class's method
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
