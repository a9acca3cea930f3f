"""The prunable matrices of a decoder block: linear layers, and the experts of a mixture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class Matrix:
    """One prunable matrix [out, in] of the language model: a linear layer, or one expert's.

    Attributes:
        name: its path from the model's root, as in the checkpoint without `.weight`; of an expert
            with its number, `...experts.7.down_proj`.
        block: index of its decoder block.
        group: index of its input group inside the block.
        module: holds the parameter; of a packed checkpoint a `sparse.SparseLinear`, or the
            `sparse.experts.SparseExperts` of an expert, only read.
        parameter: its path from the model's root.
        expert: which one of the parameter [experts, out, in]; None for a linear layer.
    """

    name: str
    block: int
    group: int
    module: nn.Module
    parameter: str
    expert: int | None = None

    def weight_in(self, module: nn.Module) -> torch.Tensor:
        """The weight [out, in] in a module like the matrix's own, outside autograd.

        It is not copied, but of a packed layer, which is unpacked every time.
        """
        part = self.parameter.rsplit(".", 1)[1]
        if self.packed:
            place = () if self.expert is None else (part, self.expert)
            return module.dense(*place)  # type: ignore[no-any-return, operator]
        weight: torch.Tensor = module.get_parameter(part).data
        return self.of(weight)

    @property
    def packed(self) -> bool:
        """Whether the module holds no plain weight."""
        return _is_packed(self.module)

    def of(self, parameter: torch.Tensor) -> torch.Tensor:
        """The part of the parameter's values that is this matrix."""
        return parameter if self.expert is None else parameter[self.expert]

    @property
    def weight(self) -> torch.Tensor:
        """The weight [out, in], outside autograd; see `weight_in`."""
        return self.weight_in(self.module)

    def replace(self, weight: torch.Tensor) -> None:
        """Put another weight [out, in] in place of the old one; see `replace_weights`."""
        replace_weights([(self, weight)])

    @property
    def size(self) -> int:
        """Number of weights."""
        if self.packed:
            module: Any = self.module
            if self.expert is not None:
                return prod(module.shapes[self.parameter.rsplit(".", 1)[1]])
            return int(module.in_features * module.out_features)
        return self.weight_in(self.module).numel()

    def inputs(self, args: tuple[Any, ...], tokens: torch.Tensor) -> torch.Tensor:
        """The rows [n, in] that enter this matrix when its module is called.

        Args:
            args: of the module's forward.
            tokens: [B, T] bool, the tokens that count; an expert sees those routed to it.
        """
        if self.expert is None:
            rows: torch.Tensor = args[0]
            return rows[tokens if rows.dim() == 3 else tokens.flatten()]
        hidden, chosen, _ = args
        rows = hidden[tokens.flatten() & (chosen == self.expert).any(dim=-1)]
        if self.parameter.endswith(EXPERTS[0]):
            return rows  # type: ignore[no-any-return]
        module: Any = self.module
        return module._apply_gate(functional.linear(rows, module.gate_up_proj[self.expert]))  # type: ignore[no-any-return]


EXPERTS = ("gate_up_proj", "down_proj")
"""The parameters [experts, out, in] of a mixture of experts."""


def is_stacked(module: nn.Module) -> bool:
    """Whether a module holds matrices of experts, each kind stacked in one parameter."""
    return bool(_stacked(module))


def is_known(module: nn.Module) -> bool:
    """Whether a module that stacks experts has them as here: two parameters, [out, in], no bias."""
    plain = not (getattr(module, "is_transposed", True) or getattr(module, "has_bias", True))
    return plain and sorted(_stacked(module)) == sorted(EXPERTS)


def _stacked(module: nn.Module) -> list[str]:
    return [name for name, each in module.named_parameters(recurse=False) if each.dim() == 3]


def _is_packed(module: nn.Module) -> bool:
    return callable(getattr(type(module), "dense", None))


def _holds_experts(module: nn.Module) -> bool:
    return _is_packed(module) and hasattr(module, "num_experts")


def replace_weights(new: Sequence[tuple[Matrix, torch.Tensor]]) -> None:
    """Put other weights [out, in] in place of matrices' old ones, which stay as they were.

    Of experts, whose weights share a parameter, it is copied once in a call.

    Raises:
        ValueError: a weight has another shape than its matrix, or a layer is packed.
    """
    copied: dict[str, torch.Tensor] = {}
    for matrix, weight in new:
        old = matrix.weight
        if matrix.packed:
            raise ValueError(f"{matrix.name} is packed")
        if weight.shape != old.shape:
            raise ValueError(f"{matrix.name}: {tuple(weight.shape)} for {tuple(old.shape)}")
        weight = weight.to(old.device, old.dtype)
        parameter = matrix.module.get_parameter(matrix.parameter.rsplit(".", 1)[1])
        if matrix.expert is None:
            parameter.data = weight
            continue
        if matrix.parameter not in copied:
            parameter.data = copied[matrix.parameter] = parameter.data.clone()
        copied[matrix.parameter][matrix.expert].copy_(weight)


def matrices_of(
    path: str,
    index: int,
    block: nn.Module,
    input_groups: Sequence[Sequence[str]],
    dense: Sequence[str],
) -> list[Matrix]:
    """The prunable matrices of a decoder block: linear layers first, then those of its experts.

    Args:
        path: of the block, from the model's root.
        index: of the block.
        input_groups, dense: as in `families.Family`.

    Raises:
        AttributeError: it has a linear layer that the family does not know, or none that it prunes.
    """
    experts = {
        name: module
        for name, module in block.named_modules()
        if "experts" in name and (is_stacked(module) or _holds_experts(module))
    }
    inside = tuple(f"{name}." for name in experts)
    linear = {
        name: module
        for name, module in block.named_modules()
        if (isinstance(module, nn.Linear) or _is_packed(module))
        and not f"{name}.".startswith(inside)
    }
    matrices = [
        Matrix(f"{path}.{name}", index, group, linear[name], f"{path}.{name}.weight")
        for group, names in enumerate(input_groups)
        for name in names
        if name in linear
    ]
    known = {name for names in input_groups for name in names}.union(dense)
    if unknown := sorted(linear.keys() - known):
        raise AttributeError(f"block {index} has linear layers of other names: {unknown[0]}")
    for name, module in experts.items():
        if is_stacked(module) and not is_known(module):
            raise AttributeError(f"block {index} has experts of another layout: {name}")
        matrices += _expert_matrices(path, index, name, module, len(input_groups))
    if not matrices:
        raise AttributeError(f"block {index} has none of the matrices that are pruned")
    return matrices


def _expert_matrices(
    path: str, index: int, name: str, module: nn.Module, group: int
) -> list[Matrix]:
    """The matrices of a block's experts; each has an input of its own: the tokens routed to it.

    Args:
        path: of the block.
        index: of the block.
        name: of the experts' module in the block.
        group: number of the first expert's input group.
    """
    packed = _is_packed(module)
    number: Any = module.num_experts if packed else len(module.get_parameter(EXPERTS[0]))
    return [
        Matrix(
            f"{path}.{name}.{expert}.{part}",
            index,
            group + 2 * expert + place,
            module,
            f"{path}.{name}.{part}",
            expert,
        )
        for expert in range(number)
        for place, part in enumerate(EXPERTS)
    ]
