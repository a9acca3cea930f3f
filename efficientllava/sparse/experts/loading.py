"""Packed experts put into a model that has no values yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from efficientllava.errors import UserError
from efficientllava.models.families.matrices import EXPERTS
from efficientllava.models.packed import DAMAGED, SECTION
from efficientllava.sparse.experts.files import ExpertMatrix, packable_experts
from efficientllava.sparse.experts.layer import SparseExperts
from efficientllava.sparse.format import PackedMatrix
from efficientllava.sparse.linear import SparseLinear
from efficientllava.sparse.record import PIECES, Settings, member_of
from efficientllava.sparse.tensor_file import ORDER, Entry


def put_experts(
    model: PreTrainedModel,
    matrices: Mapping[str, ExpertMatrix],
    settings: Settings,
    entries: Mapping[str, Entry],
) -> None:
    """Replace all modules of experts of a model on the meta device by `SparseExperts`.

    Args:
        matrices: of all experts, see `experts.files.expert_matrices`.
        entries: what the checkpoint's files hold.

    Raises:
        UserError: a matrix is missing, or has another shape than in the model.
    """
    own: dict[str, dict[str, ExpertMatrix]] = {}
    for module, matrix in sorted(matrices.items(), key=lambda item: item[1].order):
        own.setdefault(matrix.experts, {})[module] = matrix
    for path, experts in packable_experts(model).items():
        stacked = [experts.get_parameter(name) for name in EXPERTS]
        layers: list[dict[str, nn.Module]] = [{} for _ in stacked[0]]
        rows = [[0] * len(EXPERTS) for _ in layers]
        for module, matrix in own[path].items():
            if matrix.expert >= len(layers):
                continue
            weight, kind = stacked[matrix.order[0]], matrix.order[0]
            size, columns = _shape(module, settings, entries)
            rows[matrix.expert][kind] += size
            if columns != weight.shape[2] or rows[matrix.expert][kind] > weight.shape[1]:
                raise _misfit(module, weight)
            layers[matrix.expert][matrix.part] = _layer(module, settings, entries, weight.dtype)
        for expert, sizes in enumerate(rows):
            for weight, size, name in zip(stacked, sizes, EXPERTS, strict=True):
                if size != weight.shape[1]:
                    raise _misfit(f"{path}.{expert}.{name}", weight)
        markers = {
            stack.rpartition(".")[2]: _empty(entries[stack])
            for stack in settings.stacked
            if member_of(stack, 0) in own[path]
        }
        model.set_submodule(path, SparseExperts(experts, layers, markers))


def without_values(module: str, shape: Sequence[int], entries: Mapping[str, Entry]) -> PackedMatrix:
    """A packed matrix on the meta device, its tensors as large as in the files."""
    tensors = {
        piece: _empty(entry)
        for piece in PIECES
        if (entry := entries.get(f"{module}.{piece}")) is not None
    }
    return PackedMatrix(shape[0], shape[1], **tensors)


def _empty(entry: Entry) -> torch.Tensor:
    return torch.empty(entry.shape, dtype=ORDER[entry.dtype], device="meta")


def _shape(module: str, settings: Settings, entries: Mapping[str, Entry]) -> Sequence[int]:
    if module in settings.modules:
        return settings.modules[module]
    entry = entries.get(f"{module}.weight")
    if entry is None or len(entry.shape) != 2:
        raise UserError(f"{module} is missing", SECTION, DAMAGED)
    return entry.shape


def _layer(
    module: str, settings: Settings, entries: Mapping[str, Entry], dtype: torch.dtype
) -> nn.Module:
    shape = _shape(module, settings, entries)
    if module in settings.modules:
        return SparseLinear(without_values(module, shape, entries))
    return nn.Linear(shape[1], shape[0], bias=False, device="meta", dtype=dtype)


def _misfit(module: str, weight: torch.Tensor) -> UserError:
    return UserError(
        f"{module} has another shape than an expert in the model, {list(weight.shape[1:])}",
        SECTION,
        DAMAGED,
    )
