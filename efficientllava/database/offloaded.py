"""A search's model and database, put where they fit: the device, host memory, or files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from efficientllava.calibration.working_set import Tokens, search_bytes
from efficientllava.data.proxy import ProxyData
from efficientllava.database.offload import offload_database
from efficientllava.database.solutions import Database, open_database
from efficientllava.models.checkpoint import load_model
from efficientllava.models.families import Adapter, adapter_for
from efficientllava.offload.blocks_on_disk import BlocksOnDisk, blocks_on_disk
from efficientllava.offload.devices import host_memory, usable_memory
from efficientllava.offload.placement import Placement, choose_placement, needs_of, shape_of


@dataclass(frozen=True)
class Machine:
    """The device of a search and its memory.

    Attributes:
        device: where it computes.
        memory: GiB of the device; None for what is free (on the CPU: no limit).
        sharing: how many processes have the device, and a like part of its memory, to themselves.
    """

    device: torch.device
    memory: float | None = None
    sharing: int = 1


@dataclass(frozen=True)
class Offloaded:
    """A dense model and its database, where a search uses them.

    Attributes:
        blocks: streams decoder blocks to the device; None where all of them are there.
        placement: None on a CPU without a limit: all is mapped from its files.
    """

    adapter: Adapter
    database: Database
    blocks: BlocksOnDisk | None
    placement: Placement | None


@contextmanager
def offloaded(  # noqa: PLR0913 what decides how much memory is left
    model: Path,
    database: Database | Sequence[Path],
    proxy: ProxyData,
    machine: Machine,
    work: Path,
    projector_pairs: int = 0,
    kl_tokens: int | None = None,
    gradient_checkpointing: bool = False,
    gradient_tokens: int = 0,
) -> Iterator[Offloaded]:
    """Load a dense model and bring it and its database where they fit.

    Args:
        model: its checkpoint.
        database: opened, or its folders.
        work: made here and removed at the end.
        projector_pairs: image-text pairs in a step of the projector; 0 without evolution.
        gradient_checkpointing: whether such a step recomputes blocks; streamed ones always do.
        gradient_tokens: of a backward pass through the whole model; 0 without one.

    Raises:
        UserError: see `offload.placement.choose_placement`; a file cannot be read.
    """
    adapter = adapter_for(load_model(model))
    opened = database if isinstance(database, Database) else open_database(database)
    if machine.device.type == "cpu" and machine.memory is None:
        yield Offloaded(adapter, opened, None, None)
        return
    shape, tokens = shape_of(adapter), Tokens.of(proxy, projector_pairs)
    tokens = replace(tokens, step=max(tokens.step, min(gradient_tokens, tokens.batch)))
    working, kept = (
        search_bytes(shape, tokens, kl_tokens, again, machine.device.type)
        for again in (True, gradient_checkpointing)
    )
    size = sum(tensor.nbytes for tensor in opened.tensors.values())
    placement = choose_placement(
        needs_of(adapter, working, size, kept - working),
        usable_memory(machine.device, machine.memory) // machine.sharing,
        host_memory() // machine.sharing,
    )
    solutions = offload_database(opened, placement.database, machine.device)
    if placement.blocks == "device":
        adapter.model.to(machine.device)
        yield Offloaded(adapter, solutions, None, placement)
    else:
        with blocks_on_disk(adapter, model, work, machine.device) as blocks:
            yield Offloaded(adapter, solutions, blocks, placement)
