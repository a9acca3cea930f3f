"""What tensors in a checkpoint's files are called in the model that transformers makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key


def names_in_model(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """Names in the model by names in its files, as `from_pretrained` finds them.

    Names that transformers merges or splits are left out: their tensors are not as in the files.
    """
    conversions = get_model_conversion_mapping(model)
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    state = model.state_dict()
    found = {}
    for name in names:
        renamed, merged = rename_source_key(
            name, renamings, converters, model.base_model_prefix, state
        )
        if renamed not in state and name in state:
            renamed, merged = name, None
        if merged is None and renamed in state:
            found[name] = renamed
    return found


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
