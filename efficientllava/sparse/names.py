"""What tensors in a checkpoint's files are called in the model that transformers makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key


@dataclass(frozen=True)
class Place:
    """Where transformers puts a tensor of a file.

    Attributes:
        name: of the weight in the model.
        converter: what makes the weight of this tensor, or of several; None where it is as it is.
        source: the converter's pattern that the tensor's name matches.
    """

    name: str
    converter: WeightConverter | None = None
    source: str = ""


def places_in_model(model: PreTrainedModel, names: Iterable[str]) -> dict[str, Place]:
    """Places in the model by names in its files, as `from_pretrained` finds them."""
    conversions = get_model_conversion_mapping(model)
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    by_source = {source: each for each in converters for source in each.source_patterns}
    state = model.state_dict()
    found = {}
    for name in names:
        renamed, source = rename_source_key(
            name, renamings, converters, model.base_model_prefix, state
        )
        if renamed not in state and name in state:
            renamed, source = name, None
        if renamed in state:
            found[name] = Place(renamed, by_source[source], source) if source else Place(renamed)
    return found


def names_in_model(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """Names in the model by names in its files.

    Names that transformers merges or splits are left out: their tensors are not as in the files.
    """
    places = places_in_model(model, names)
    return {name: place.name for name, place in places.items() if place.converter is None}


def packable_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The layers that may be packed, by name: linear, with a weight that nothing else shares.

    The embeddings and the head are left out, as are subclasses of `nn.Linear`, whose weights are
    read by others.
    """
    shared = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    spared = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and shared[id(module.weight)] == 1 and id(module) not in spared
    }
