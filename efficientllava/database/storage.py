"""How a pruned matrix lies in a file: as it is, or as a bitmask and the weights that are left.

Compact, a float32 matrix takes 1/32 + (1 - ratio) of its size: 53 % at half zeros. Either way the
same bits come back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch.nn import functional

Storage = Literal["dense", "compact"]
MASK, KEPT = ":mask", ":kept"


def stored(key: str, solution: torch.Tensor, form: Storage) -> dict[str, torch.Tensor]:
    """The tensors that hold a solution [out, in], by key.

    Compact: KEY:mask [out, ceil(in / 8)] uint8, bit i of a byte for column 8 * byte + i, and
    KEY:kept [n], the weights whose bit is set, row by row.
    """
    if form == "dense":
        return {key: solution}
    # by bits and not by value: a negative zero counts as kept, or it would come back positive
    raw = solution.contiguous().view(torch.uint8).view(*solution.shape, -1)
    kept = (raw != 0).any(dim=2)
    return {key + MASK: packed(kept), key + KEPT: solution[kept]}


def tensor_digest(tensor: torch.Tensor) -> str:
    """sha256 of a tensor's type, shape and bytes, as hexadecimal digits."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\0".encode())
    digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def packed(mask: torch.Tensor) -> torch.Tensor:
    """A mask [rows, columns] as bits [rows, ceil(columns / 8)] uint8, on the mask's device."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.packbits(mask.numpy(), axis=1, bitorder="little"))
    whole = functional.pad(mask.to(torch.uint8), (0, -mask.shape[1] % 8))
    bits = whole.view(mask.shape[0], -1, 8) << _shifts(mask.device)
    return bits.sum(dim=2, dtype=torch.uint8)


def unpacked(bits: torch.Tensor, columns: int) -> torch.Tensor:
    """The mask [rows, columns] of packed bits: the inverse of `packed`."""
    return ((bits[:, :, None] >> _shifts(bits.device)) & 1).bool().flatten(1)[:, :columns]


def _shifts(device: torch.device) -> torch.Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)


def restored(tensors: Mapping[str, torch.Tensor], key: str, size: int) -> torch.Tensor:
    """The solution of `size` weights [out, in] under a key; dense ones are not copied."""
    if key in tensors:
        return tensors[key]
    rows = tensors[key + MASK].shape[0]
    solution = tensors[key + KEPT].new_empty(rows, size // rows)
    restore_into(tensors, key, solution)
    return solution


def restore_into(tensors: Mapping[str, torch.Tensor], key: str, weight: torch.Tensor) -> None:
    """Write the solution under a key into `weight` [out, in] of any dtype and device.

    On a GPU nothing here waits for the device: copies from pinned memory and the decoding are
    queued on the current stream.
    """
    if key in tensors:
        weight.copy_(tensors[key], non_blocking=True)
        return
    mask, kept = tensors[key + MASK], tensors[key + KEPT]
    if weight.device.type == "cpu" and weight.dtype == kept.dtype == torch.float32:
        if weight.is_contiguous():
            from efficientllava.database.decode import decode  # needs numba, which loads slowly

            decode(mask.numpy(), kept.numpy(), weight.numpy())
            return
    chosen = unpacked(mask.to(weight.device, non_blocking=True), weight.shape[1])
    decoded = torch.zeros(weight.shape, dtype=kept.dtype, device=weight.device)
    # not decoded[chosen] = ...: that would ask the device how many there are, and wait
    decoded.masked_scatter_(chosen, kept.to(weight.device, non_blocking=True))
    weight.copy_(decoded)
