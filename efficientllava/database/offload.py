"""Where an opened database lies: on the device, in page-locked host memory, or in its files."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from math import prod
from typing import Literal

import torch
from torch.cuda import _pin_memory_utils as page_locking

from efficientllava.database.solutions import Database

ARENA = 2**30
"""Bytes of host memory that are taken and locked at a time; larger tensors have one alone."""
ALIGNMENT = 64

Location = Literal["device", "host", "disk"]


def offload_database(database: Database, where: Location, device: torch.device) -> Database:
    """The same database somewhere else.

    Args:
        where: "device", "host" (page-locked for a GPU: copies do not block) or "disk", as
            it was opened: mapped from its files and read when used.
        device: that it is used on.
    """
    if where == "disk":
        return database
    for key in database.tensors:
        database.check(key)  # all of them are read now
    if where == "device":
        moved = {key: tensor.to(device) for key, tensor in database.tensors.items()}
        return Database(database.manifest, moved)
    copies, arenas = in_arenas(database.tensors)
    copied = Database(database.manifest, copies)
    if device.type == "cuda":
        for arena in arenas:
            page_locking.pin_memory(arena.data_ptr(), arena.nbytes)
        # unlocked before the memory is given back, of which the arenas are held until then
        weakref.finalize(copied, _unlock, arenas).atexit = False
    return copied


def _unlock(arenas: Sequence[torch.Tensor]) -> None:
    for arena in arenas:
        page_locking.unpin_memory(arena.data_ptr())


def in_arenas(
    tensors: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Copies of tensors in few large pieces of host memory, and these pieces.

    torch rounds page-locked memory up to powers of two: up to twice the need.
    """
    pieces: list[list[str]] = [[]]
    used = 0
    for key, tensor in tensors.items():
        if used and used + _room(tensor) > ARENA:
            pieces.append([])
            used = 0
        pieces[-1].append(key)
        used += _room(tensor)
    copies: dict[str, torch.Tensor] = {}
    arenas = []
    for keys in pieces:
        arena = torch.empty(sum(_room(tensors[key]) for key in keys), dtype=torch.uint8)
        arenas.append(arena)
        start = 0
        for key in keys:
            tensor = tensors[key]
            end = start + prod(tensor.shape) * tensor.element_size()
            copies[key] = arena[start:end].view(tensor.dtype).view(tensor.shape).copy_(tensor)
            start += _room(tensor)
    return {key: copies[key] for key in tensors}, arenas


def _room(tensor: torch.Tensor) -> int:
    return -(-prod(tensor.shape) * tensor.element_size() // ALIGNMENT) * ALIGNMENT
