"""A checkpoint opened for pruning so that it fits: block by block, or as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from efficientllava.calibration.working_set import Tokens, calibration_bytes, search_bytes
from efficientllava.data.proxy import ProxyData
from efficientllava.errors import UserError
from efficientllava.models.checkpoint import load_model
from efficientllava.models.families import Adapter, adapter_for
from efficientllava.offload.blocks_on_disk import BlocksOnDisk, blocks_on_disk
from efficientllava.offload.devices import host_memory, open_device, usable_memory
from efficientllava.offload.placement import GIB, choose_placement, needs_of, shape_of
from efficientllava.parameters import MachineParameters


@dataclass(frozen=True)
class OpenModel:
    """A model that is open for pruning.

    Attributes:
        blocks: brings decoder blocks to memory and to the device; None where all of them are there.
    """

    adapter: Adapter
    blocks: BlocksOnDisk | None = None


@contextmanager
def block_by_block(
    folder: Path,
    work: Path,
    proxy: ProxyData,
    machine: MachineParameters,
    levels: int = 1,
    losses: int = 0,
    block_size: int = 128,
) -> Iterator[OpenModel]:
    """Open a model whose blocks are in memory, and on the device, only while they run.

    Args:
        folder: its checkpoint.
        work: see `blocks_on_disk`.
        levels: at which a matrix is pruned at the same time.
        losses: proxy losses that are held at the same time.
        block_size: columns of OBS that are pruned together.

    Raises:
        UserError: not even this fits on the device.
    """
    device, memory = open_device(machine.device), machine.device_memory
    adapter = adapter_for(load_model(folder))
    if device.type == "cpu" and memory is None:
        used = None
    else:
        used, shape, tokens = device, shape_of(adapter), Tokens.of(proxy)
        working = calibration_bytes(shape, tokens, levels, block_size)
        working += losses * search_bytes(shape, tokens, device=device.type)
        choose_placement(needs_of(adapter, working), usable_memory(device, memory), host_memory())
    with blocks_on_disk(adapter, folder, work, used) as blocks:
        yield OpenModel(adapter, blocks)


def whole(folder: Path, machine: MachineParameters, times: int = 1) -> OpenModel:
    """Open a model that lies on the device as a whole, for work that changes its parts.

    Args:
        times: how often its blocks' bytes are held at the same time (gradients count).

    Raises:
        UserError: it does not fit.
    """
    device, memory = open_device(machine.device), machine.device_memory
    adapter = adapter_for(load_model(folder))
    if device.type == "cpu":
        return OpenModel(adapter)
    needs, budget = needs_of(adapter, 0), usable_memory(device, memory)
    required = needs.fixed + times * needs.blocks
    if required > budget:
        raise UserError(
            f"this method needs the whole model on the GPU: {required / GIB:.1f} GiB and its "
            f"activations, {budget / GIB:.1f} GiB may be used",
            where=f"params.yaml, machine.device: {machine.device}",
            remedy="use machine.device: cpu for this method, or a larger GPU",
        )
    adapter.model.to(device)
    return OpenModel(adapter)
