"""Which tensors of a checkpoint's files are the matrices of a mixture's experts.

Files hold each expert's matrices apart, or all of a kind in one tensor of three dimensions.
transformers' own conversions say which.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightTransform,
)

from efficientllava.errors import UserError
from efficientllava.models.families.matrices import EXPERTS, is_known, is_stacked
from efficientllava.models.packed import DAMAGED
from efficientllava.sparse.names import Place, places_in_model
from efficientllava.sparse.record import Stack, member_of
from efficientllava.sparse.tensor_file import Entry


@dataclass(frozen=True)
class ExpertMatrix:
    """A matrix of an expert, or gate and up as one.

    Attributes:
        experts: path of the module of experts in the model.
        expert: its number.
        part: the last part of its module's name.
        order: index in `EXPERTS` of the parameter that it belongs to, and its place there.
    """

    experts: str
    expert: int
    part: str
    order: tuple[int, int]


def packable_experts(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The modules of a model that stack experts, by path; none if one of them has another form."""
    modules = {
        name: module
        for name, module in model.named_modules()
        if "experts" in name and is_stacked(module)
    }
    fit = all(
        is_known(module)
        and getattr(module, "has_gate", False)
        and not getattr(module, "has_post_expert_norm", True)
        for module in modules.values()
    )
    return modules if fit else {}


def stacks_in(model: PreTrainedModel, entries: Mapping[str, Entry]) -> dict[str, Stack]:
    """The tensors of a checkpoint's files that stack matrices of experts, by name.

    Args:
        model: without weights, see `models.checkpoint.skeleton`.
        entries: what the files hold.
    """
    experts, stacks = packable_experts(model), {}
    for name, place in places_in_model(model, entries).items():
        module, _, parameter = place.name.rpartition(".")
        if module in experts and parameter in EXPERTS and _is_stack(place):
            shape = list(entries[name].shape)
            expected = list(experts[module].get_parameter(parameter).shape)
            turned = [expected[0], expected[2], expected[1]]
            # as transformers decides it: square matrices are as in the model
            if shape == expected or (place.converter is not None and shape == turned):
                stacks[name] = Stack(shape, shape != expected)
    return stacks


def _is_stack(place: Place) -> bool:
    operations: Any = () if place.converter is None else place.converter.operations
    return all(isinstance(each, Transpose) and each.check_dims for each in operations)


def expert_matrices(
    model: PreTrainedModel, names: Iterable[str], stacks: Collection[str]
) -> dict[str, ExpertMatrix]:
    """The matrices of all experts, by the names of their modules in a packed checkpoint.

    Args:
        names: of the tensors in the files; those that are no matrix of an expert are passed over.
        stacks: names of tensors that stack matrices; each matrix counts.

    Returns:
        Nothing where experts have a form that is not known here.

    Raises:
        UserError: a matrix of an expert is missing.
    """
    experts, found = packable_experts(model), {}
    for name, place in places_in_model(model, names).items():
        module, _, parameter = place.name.rpartition(".")
        if module not in experts or parameter not in EXPERTS:
            continue
        kind = EXPERTS.index(parameter)
        if name in stacks:
            for expert in range(len(experts[module].get_parameter(parameter))):
                matrix = ExpertMatrix(module, expert, parameter, (kind, 0))
                found[member_of(name, expert)] = matrix
        elif place.converter is not None and _is_merge(place.converter):
            path = name.removesuffix(".weight")
            _, number, part = path.rsplit(".", 2)
            order = (kind, place.converter.source_patterns.index(place.source))
            if number.isdecimal():
                found[path] = ExpertMatrix(module, int(number), part, order)
    kinds = {(each.experts, each.order[0]) for each in found.values()}
    if kinds != {(module, kind) for module in experts for kind in range(len(EXPERTS))}:
        return {}  # some are stored in a form that is not known here
    _require_all(experts, found.values())
    return found


def _is_merge(converter: WeightConverter) -> bool:
    merges = (MergeModulelist, Concatenate)
    return all("*." in source for source in converter.source_patterns) and all(
        isinstance(each, merges) for each in converter.operations
    )


def _require_all(experts: Mapping[str, nn.Module], found: Collection[ExpertMatrix]) -> None:
    """Check that every expert of a module has all the parts that one of them has."""
    held = {(each.experts, each.part, each.expert) for each in found}
    for module, part in sorted({each[:2] for each in held}):
        for expert in range(len(experts[module].get_parameter(EXPERTS[0]))):
            if (module, part, expert) not in held:
                raise UserError(f"{module}.{expert}.{part} is missing", "experts", DAMAGED)


def converts_experts(conversion: WeightTransform) -> bool:
    """Whether a conversion of transformers stacks matrices of experts, or turns them."""
    ends = tuple(f"experts.{name}" for name in EXPERTS)
    return isinstance(conversion, WeightConverter) and any(
        target.endswith(ends) for target in conversion.target_patterns
    )
