"""Decoder blocks that lie in files and are in memory only while they run.

`load_model` maps a checkpoint's files into memory: nothing is read before it is used, but what was
used stays. Here a block's weights are mapped anew after every run of the block, which lets go of
what was read; and weights that were replaced meanwhile (`Matrix.replace`) are written to a file
first and mapped from there, as are at once those that transformers converted to another dtype.
Host memory then holds one block, whatever the size of the model.

With a device, a block's weights are copied there before it runs, and everything but the blocks
lies there all the time (`block_stream`).
"""

from __future__ import annotations

import ctypes
import json
import shutil
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import nn

from efficientllava.errors import UserError
from efficientllava.files import save_tensors
from efficientllava.models.families import Adapter, Matrix
from efficientllava.models.weight_files import INDEX, WHOLE
from efficientllava.offload.block_stream import BlockStream, Copy, streaming
from efficientllava.offload.file_layout import FileLayout, WeightLocation
from efficientllava.reading import opened_tensors


class Overlay(Protocol):
    """Other weights for a block's prunable matrices, written into their slots on the device."""

    def key(self, block: int) -> Hashable:
        """The key of a block's current weights: equal keys, equal weights."""

    def put(self, block: int, slots: Mapping[str, torch.Tensor]) -> None:
        """Write them into their slots, by parameter name in the model."""


class BlocksOnDisk:
    """Keeps the decoder blocks of a model in files between their runs; see `blocks_on_disk`.

    Args:
        folder: the checkpoint the model was loaded from.
        work: an empty folder for the blocks that change, or have another dtype in their files.
        device: where blocks are brought when they run, and all else at once; None leaves
            everything where it is.

    Attributes:
        overlay: with a device, what replaces the prunable matrices there.
        stream: with a device, what brings the blocks.
    """

    overlay: Overlay | None = None

    def __init__(
        self, adapter: Adapter, folder: Path, work: Path, device: torch.device | None = None
    ) -> None:
        self._model, self._blocks = adapter.model, adapter.blocks
        self._work, self._written = work, 0
        paths = {id(value): name for name, value in adapter.model.named_parameters()}
        self._names = [
            {name: paths[id(value)] for name, value in block.named_parameters()}
            for block in adapter.blocks
        ]
        self._layout = FileLayout(adapter.model, folder)
        locations = self._layout.locations
        self._locations = {
            name: locations[name]
            for names in self._names
            for name in names.values()
            if name in locations
        }
        prunable = {matrix.parameter for matrix in adapter.matrices}
        self._prunable = [
            {name for name, path in names.items() if path in prunable} for names in self._names
        ]
        self._mapped: dict[str, int] = {}
        for block, module in enumerate(self._blocks):
            self._keep(
                block,
                {
                    path: value.data
                    for path, value in zip(
                        self._names[block].values(), module.parameters(), strict=True
                    )
                    if not _lies_as_is(locations.get(path), value)
                },
            )
        self.stream: BlockStream | None = None
        if device is not None:
            _bring_rest(adapter.model, set(self._locations), device)
            self.stream = BlockStream(
                self._blocks, [list(names) for names in self._names], device, self
            )

    @property
    def prunable(self) -> set[str]:
        """The prunable weights that lie in files between runs, by parameter name."""
        return {self._names[block][n] for block, names in enumerate(self._prunable) for n in names}

    def key(self, block: int) -> Hashable:
        """See `block_stream.Source`: files do not change, an overlay does."""
        return None if self.overlay is None else self.overlay.key(block)

    def fill(self, block: int, slots: Mapping[str, torch.Tensor], copy: Copy) -> None:
        """See `block_stream.Source`."""
        self.offload(block)  # what was replaced while the block was away
        covered = set() if self.overlay is None else self._prunable[block]
        for name, parameter in self._blocks[block].named_parameters():
            if name in slots and name not in covered:
                copy(slots[name], parameter.data)
        if self.overlay is not None:
            self.overlay.put(block, {self._names[block][name]: slots[name] for name in covered})

    def onloaded(self, block: int, slots: Mapping[str, torch.Tensor]) -> None:
        """See `block_stream.Source`."""
        for name, slot in slots.items():
            self._mapped[self._names[block][name]] = slot.data_ptr()

    def release(self, block: int | None = None) -> None:
        """Write what changed in a block (in all of them when None) and map its weights anew."""
        if block is None:
            for number in range(len(self._blocks)):
                self.release(number)
            return
        if self.stream is not None:
            self.stream.release(block)
        self.offload(block)

    def offload(self, block: int) -> None:
        """Write what changed in a block, which is on no device any more, and map its weights."""
        parameters = dict(self._blocks[block].named_parameters())
        changed = {
            path: parameters[name].data
            for name, path in self._names[block].items()
            if parameters[name].data_ptr() != self._mapped[path]
        }
        self._keep(block, changed)

    def _keep(self, block: int, changed: dict[str, torch.Tensor]) -> None:
        """Write weights of a block that are not in a file yet, and map all of the block's."""
        if changed:
            self._written += 1
            file = self._work / f"block-{block:03d}-{self._written:05d}.safetensors"
            save_tensors(file, changed)
            self._locations |= {name: WeightLocation(file, name) for name in changed}
        self._map(block)
        if changed:
            changed.clear()
            _trim_heap()

    def _map(self, block: int) -> None:
        parameters = dict(self._blocks[block].named_parameters())
        by_file: dict[Path, list[str]] = {}
        for name, path in self._names[block].items():
            by_file.setdefault(self._locations[path].file, []).append(name)
        for file, names in by_file.items():
            with opened_tensors(file) as opened:
                for name in names:
                    path = self._names[block][name]
                    value = opened.get_tensor(self._locations[path].key)
                    parameters[name].data = value
                    self._mapped[path] = value.data_ptr()

    def weight(self, matrix: Matrix) -> torch.Tensor:
        """A matrix's weight as it lies in its file now, mapped but not read."""
        return matrix.of(self._open(matrix.parameter))

    def _open(self, path: str) -> torch.Tensor:
        location = self._locations[path]
        with opened_tensors(location.file) as opened:
            value: torch.Tensor = opened.get_tensor(location.key)
        return value

    def save_weights(self, folder: Path) -> None:
        """Write the model's weights into as many files as those it came from, one after the other.

        Tied weights are written once, as transformers does.
        """
        self.release()
        state = self._model.state_dict()

        def value(name: str) -> torch.Tensor:
            return self._open(name) if name in self._locations else state[name].cpu()

        contents = self._layout.contents
        count, size, weight_map = len(contents), 0, {}
        for number, names in enumerate(contents, 1):
            file = WHOLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            tensors = self._layout.tensors(names, value)
            save_file(tensors, folder / file, metadata={"format": "pt"})
            size += sum(tensor.nbytes for tensor in tensors.values())
            weight_map.update(dict.fromkeys(tensors, file))
        if count > 1:
            parameters = sum(value.numel() for value in self._model.parameters())
            metadata = {"total_parameters": parameters, "total_size": size}
            index = {"metadata": metadata, "weight_map": weight_map}
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (folder / INDEX).write_text(text, encoding="utf-8")


def _lies_as_is(location: WeightLocation | None, value: torch.Tensor) -> bool:
    if location is None:
        return False
    with opened_tensors(location.file) as opened:
        stored = opened.get_tensor(location.key)
    return bool(stored.dtype == value.dtype and stored.shape == value.shape)


def _bring_rest(model: nn.Module, stays: set[str], device: torch.device) -> None:
    """Move everything to a device but the parameters named."""
    for name, parameter in model.named_parameters():
        if name not in stays:
            parameter.data = parameter.data.to(device)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(
                name, buffer.to(device), name not in module._non_persistent_buffers_set
            )


@contextmanager
def blocks_on_disk(
    adapter: Adapter, folder: Path, work: Path, device: torch.device | None = None
) -> Iterator[BlocksOnDisk]:
    """Keep one decoder block at a time in memory; afterwards all blocks are ordinary again.

    Weights must be replaced as a whole (`Matrix.replace`): changes in place are lost.

    Args:
        folder: the checkpoint the model was loaded from.
        work: made here and removed at the end; takes as much as the weights that change, or
            have another dtype in memory than in the folder.
        device: where blocks run and the rest of the model lies; None: where the model is. Blocks
            are on the CPU again afterwards.

    Raises:
        UserError: the model is packed.
    """
    if any(matrix.packed for matrix in adapter.matrices):
        raise UserError(
            "the blocks of a packed checkpoint cannot be brought to a device one by one",
            where=str(folder),
            remedy="use a device that holds all of it, the CPU, or efficientllava unpack",
        )
    block_files = Path(work) / "blocks"
    shutil.rmtree(block_files, ignore_errors=True)  # of a run that was killed
    block_files.mkdir(parents=True)
    with ExitStack() as hooks:
        # what is mapped stays readable when its file is gone
        hooks.callback(shutil.rmtree, block_files)
        kept = BlocksOnDisk(adapter, folder, block_files, device)
        if kept.stream is not None:
            hooks.enter_context(streaming(adapter.blocks, kept.stream))
            yield kept
            return
        for number, block in enumerate(adapter.blocks):
            handle = block.register_forward_hook(_releasing(kept, number))
            hooks.callback(handle.remove)
        yield kept


def _releasing(kept: BlocksOnDisk, block: int) -> Callable[..., None]:
    def release(module: nn.Module, args: Any, output: Any) -> None:
        kept.release(block)

    return release


def _trim_heap() -> None:
    """Give freed memory back to the system: glibc keeps what lies between pieces still in use."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
