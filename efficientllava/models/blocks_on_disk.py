"""Decoder blocks that lie in files and are in memory only while they run.

`load_model` maps a checkpoint's files into memory: nothing is read before it is used, but what was
used stays. Here a block's weights are mapped anew after every run of the block, which lets go of
what was read; and weights that were replaced meanwhile (`Matrix.replace`) are written to a file
first and mapped from there. Host memory then holds one block, whatever the size of the model.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from efficientllava.files import save_tensors
from efficientllava.models.adapter import Adapter, Matrix
from efficientllava.models.weight_files import weight_files


@dataclass(frozen=True)
class Place:
    """Where a weight lies."""

    file: Path
    key: str


class BlocksOnDisk:
    """Keeps the decoder blocks of a model in files between their runs; see `blocks_on_disk`.

    Args:
        folder: the checkpoint the model was loaded from.
        work: an empty folder for the blocks that change.
    """

    def __init__(self, adapter: Adapter, folder: Path, work: Path) -> None:
        self._blocks = adapter.blocks
        self._work, self._written = work, 0
        paths = {id(value): name for name, value in adapter.model.named_parameters()}
        places = places_in(adapter.model, folder)
        self._names = [
            {name: paths[id(value)] for name, value in block.named_parameters()}
            for block in adapter.blocks
        ]
        self._places = {name: places[name] for names in self._names for name in names.values()}
        self._mapped: dict[str, int] = {}
        for block in range(len(self._blocks)):
            self._map(block)

    def let_go(self, block: int | None = None) -> None:
        """Write what changed in a block (in all of them when None) and map its weights anew."""
        if block is None:
            for each in range(len(self._blocks)):
                self.let_go(each)
            return
        changed = {
            self._names[block][name]: value.data
            for name, value in self._blocks[block].named_parameters()
            if value.data_ptr() != self._mapped[self._names[block][name]]
        }
        if changed:
            self._written += 1
            file = self._work / f"block-{block:03d}-{self._written:05d}.safetensors"
            save_tensors(file, changed)
            self._places |= {name: Place(file, name) for name in changed}
        self._map(block)

    def _map(self, block: int) -> None:
        parameters = dict(self._blocks[block].named_parameters())
        by_file: dict[Path, list[str]] = {}
        for name, path in self._names[block].items():
            by_file.setdefault(self._places[path].file, []).append(name)
        for file, names in by_file.items():
            with safe_open(file, framework="pt") as opened:
                for name in names:
                    path = self._names[block][name]
                    value = opened.get_tensor(self._places[path].key)
                    parameters[name].data = value
                    self._mapped[path] = value.data_ptr()

    def weight(self, matrix: Matrix) -> torch.Tensor:
        """A matrix's weight as it lies in its file now, mapped but not read."""
        return self._open(f"{matrix.name}.weight")

    def _open(self, path: str) -> torch.Tensor:
        place = self._places[path]
        with safe_open(place.file, framework="pt") as opened:
            value: torch.Tensor = opened.get_tensor(place.key)
        return value

    def state(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """The model's state, the blocks' part of it mapped but not read: for saving in shards."""
        self.let_go()
        return {
            name: self._open(name) if name in self._places else value
            for name, value in model.state_dict().items()
        }


def places_in(model: nn.Module, folder: Path) -> dict[str, Place]:
    """Where a checkpoint's files hold the parameters of a model that was loaded from them.

    Names in files are those of the hub's layout; transformers turns the model's names into them
    when it saves, and is asked to do that here with numbers in the weights' place.
    """
    assert isinstance(model, PreTrainedModel)
    names = list(model.state_dict())
    numbered = {name: torch.tensor(index) for index, name in enumerate(names)}
    in_files = revert_weight_conversion(model, numbered)
    keys = {key: names[int(number)] for key, number in in_files.items()}
    places = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            places.update({keys[key]: Place(file, key) for key in opened.keys() if key in keys})
    return places


@contextmanager
def blocks_on_disk(adapter: Adapter, folder: Path, work: Path) -> Iterator[BlocksOnDisk]:
    """Keep one decoder block at a time in memory; afterwards all blocks are ordinary again.

    Weights must be replaced as a whole (`Matrix.replace`): what is changed in place is lost.

    Args:
        folder: the checkpoint the model was loaded from, in its own dtype.
        work: made here and removed at the end; takes as much as the weights that change.
    """
    place = Path(work) / "blocks"
    shutil.rmtree(place, ignore_errors=True)  # of a run that was killed
    place.mkdir(parents=True)
    with ExitStack() as hooks:
        # what is mapped stays readable when its file is gone
        hooks.callback(shutil.rmtree, place)
        kept = BlocksOnDisk(adapter, folder, place)
        for number, block in enumerate(adapter.blocks):
            handle = block.register_forward_hook(_letting_go(kept, number))
            hooks.callback(handle.remove)
        yield kept


def _letting_go(kept: BlocksOnDisk, block: int) -> Callable[..., None]:
    def let_go(module: nn.Module, args: Any, output: Any) -> None:
        kept.let_go(block)

    return let_go
