"""How stages bring a model to the device of params.yaml: block by block, or as much as fits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.runtime.stage import Stage

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from efficientllava.data.proxy import ProxyData
    from efficientllava.models.families import Adapter
    from efficientllava.offload.blocks_on_disk import BlocksOnDisk


def opened(stage: Stage) -> torch.device:
    """The device that the stage computes on, ready for it."""
    from efficientllava.offload.devices import open_device

    return open_device(stage.parameters.machine.device)


@contextmanager
def block_by_block(
    stage: Stage, folder: Path, work: Path, proxy: ProxyData, levels: int, losses: int = 0
) -> Iterator[tuple[Adapter, BlocksOnDisk]]:
    """A model whose blocks are in memory, and on the device, only while they run.

    Args:
        folder: its checkpoint.
        work: see `blocks_on_disk`.
        levels: at which a matrix is pruned at the same time.
        losses: proxy losses that are held at the same time.

    Raises:
        UserError: not even this fits on the device.
    """
    from efficientllava.calibration.working_set import (
        Tokens,
        calibration_bytes,
        search_bytes,
    )
    from efficientllava.models.checkpoint import load_model
    from efficientllava.models.families import adapter_for
    from efficientllava.offload.blocks_on_disk import blocks_on_disk
    from efficientllava.offload.devices import host_memory, usable_memory
    from efficientllava.offload.placement import needs_of, place, shape_of

    device, memory = opened(stage), stage.parameters.machine.device_memory
    adapter = adapter_for(load_model(folder))
    if device.type == "cpu" and memory is None:
        used = None
    else:
        used, shape, tokens = device, shape_of(adapter), Tokens.of(proxy)
        working = calibration_bytes(shape, tokens, levels, stage.parameters.pruning.block_size)
        working += losses * search_bytes(shape, tokens, device=device.type)
        place(needs_of(adapter, working), usable_memory(device, memory), host_memory())
    with blocks_on_disk(adapter, folder, work, used) as blocks:
        yield adapter, blocks


def whole(stage: Stage, folder: Path, times: int = 1) -> PreTrainedModel:
    """A model that lies on the device as a whole, for work that changes its parts.

    Args:
        times: how often its blocks' bytes are held at the same time (gradients count).

    Raises:
        UserError: it does not fit.
    """
    from efficientllava.errors import UserError
    from efficientllava.models.checkpoint import load_model
    from efficientllava.models.families import adapter_for
    from efficientllava.offload.devices import usable_memory
    from efficientllava.offload.placement import GIB, needs_of

    device, memory = opened(stage), stage.parameters.machine.device_memory
    model = load_model(folder)
    if device.type == "cpu":
        return model
    needs, budget = needs_of(adapter_for(model), 0), usable_memory(device, memory)
    wanted = needs.fixed + times * needs.blocks
    if wanted > budget:
        raise UserError(
            f"{stage.method} needs the whole model on the GPU: {wanted / GIB:.1f} GiB and its "
            f"activations, {budget / GIB:.1f} GiB may be used",
            where=f"params.yaml, machine.device: {stage.parameters.machine.device}",
            remedy="use machine.device: cpu for this method, or a larger GPU",
        )
    return model.to(device)
