"""Which weights of a model its checkpoint's files hold, under which keys, and in which form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from efficientllava.models.weight_files import weight_files
from efficientllava.reading import opened_tensors


@dataclass(frozen=True)
class WeightLocation:
    """Where a weight lies."""

    file: Path
    key: str


class FileLayout:
    """How a checkpoint's files hold the weights of the model that was loaded from them.

    Most lie there as they are in the model, perhaps under another name. Those of a mixture of
    experts may lie in another form: each expert's matrices apart, or transposed.

    Args:
        folder: the checkpoint.

    Attributes:
        locations: of the weights that lie as they are, by name in the model.
        contents: of every file the names in the model by keys; of tied weights the first that
            lies in a file. A weight that lies in none goes to the last file.
    """

    def __init__(self, model: nn.Module, folder: Path) -> None:
        assert isinstance(model, PreTrainedModel)
        self._model = model
        weights = dict(model.state_dict(keep_vars=True))
        stacked = _stacked(model, weights)
        plain = _names_in_files(model, [name for name in weights if name not in stacked])
        self._keys: dict[str, list[str]] = {name: [key] for key, name in plain.items()}
        self._other_form = set()
        for name, parts in stacked.items():
            self._keys[name] = list(parts)
            if list(parts.values()) != [weights[name].shape]:
                self._other_form.add(name)
        files = weight_files(folder)
        stored = {key: file for file in files for key in _keys(file)}
        self.locations = {
            name: WeightLocation(stored[key], key)
            for name, [key, *_] in self._keys.items()
            if name not in self._other_form and key in stored
        }
        contents: dict[Path, dict[str, str]] = {file: {} for file in files}
        for names in _tied(weights):
            name = next((name for name in names if name in self.locations), names[0])
            for key in self._keys[name]:
                contents[stored.get(key, files[-1])][key] = name
        self.contents = [names for names in contents.values() if names]

    def tensors(
        self, names: Mapping[str, str], weight: Callable[[str], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """What a file holds, by key.

        Args:
            names: one of `contents`.
            weight: gives a weight by its name in the model.
        """
        tensors = {key: weight(name) for key, name in names.items() if name not in self._other_form}
        for name in {name for name in names.values() if name in self._other_form}:
            parts = revert_weight_conversion(self._model, {name: weight(name)})
            tensors |= {key: part for key, part in parts.items() if names.get(key) == name}
        return {key: tensors[key].contiguous() for key in names}


def _keys(file: Path) -> Iterator[str]:
    with opened_tensors(file) as opened:
        yield from opened.keys()


def _tied(weights: Mapping[str, torch.Tensor]) -> list[list[str]]:
    tied: dict[int, list[str]] = {}
    for name, value in weights.items():
        tied.setdefault(id(value), []).append(name)
    return list(tied.values())


def _names_in_files(model: PreTrainedModel, names: list[str]) -> dict[str, str]:
    """Names in the model by names in its files.

    Names in files are those of the hub's layout; transformers turns the model's names into them
    when it saves, and is asked to do that here with numbers instead of weights.
    """
    numbered = {name: torch.tensor(index) for index, name in enumerate(names)}
    in_files = revert_weight_conversion(model, numbered)
    return {key: names[int(number)] for key, number in in_files.items()}


def _stacked(
    model: PreTrainedModel, weights: Mapping[str, torch.Tensor]
) -> dict[str, dict[str, torch.Size]]:
    """Shapes of what files hold, by key, of every weight that stacks experts, by name in it."""
    stacked = {}
    for name, value in weights.items():
        if value.dim() == 3 and "experts" in name:
            without_values = torch.empty(value.shape, dtype=value.dtype, device="meta")
            parts = revert_weight_conversion(model, {name: without_values})
            stacked[name] = {key: part.shape for key, part in parts.items()}
    return stacked
