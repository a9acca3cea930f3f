"""How a pruned matrix lies in a file: as it is, or as a bitmask and the weights that are left.

Compact, a float32 matrix takes 1/32 + (1 - ratio) of its size: 53 % at half zeros. Either way the
same bits come back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numba
import numpy as np
import torch

Storage = Literal["dense", "compact"]
MASK, KEPT = ":mask", ":kept"

compiled: Callable[..., Any] = numba.njit(nogil=True, cache=True)


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
    mask = torch.from_numpy(np.packbits(kept.cpu().numpy(), axis=1, bitorder="little"))
    return {key + MASK: mask, key + KEPT: solution[kept]}


def restored(tensors: Mapping[str, torch.Tensor], key: str, size: int) -> torch.Tensor:
    """The solution of `size` weights [out, in] under a key; dense ones are not copied."""
    if key in tensors:
        return tensors[key]
    rows = tensors[key + MASK].shape[0]
    solution = tensors[key + KEPT].new_empty(rows, size // rows)
    restore_into(tensors, key, solution)
    return solution


def restore_into(tensors: Mapping[str, torch.Tensor], key: str, weight: torch.Tensor) -> None:
    """Write the solution under a key into `weight` [out, in] of any dtype and device."""
    if key in tensors:
        weight.copy_(tensors[key])
        return
    mask, kept = tensors[key + MASK], tensors[key + KEPT]
    if weight.device.type == "cpu" and weight.dtype == kept.dtype == torch.float32:
        if weight.is_contiguous():
            _decode(mask.numpy(), kept.numpy(), weight.numpy())
            return
    bits = mask.to(weight.device)[:, :, None] >> torch.arange(
        8, dtype=torch.uint8, device=weight.device
    )
    chosen = (bits & 1).bool().flatten(1)[:, : weight.shape[1]]
    decoded = torch.zeros(weight.shape, dtype=kept.dtype, device=weight.device)
    decoded[chosen] = kept.to(weight.device)
    weight.copy_(decoded)


@compiled
def _decode(mask, kept, weight):  # type: ignore[no-untyped-def]
    rows, columns = weight.shape
    taken = 0
    for row in range(rows):
        for byte in range(mask.shape[1]):
            bits = mask[row, byte]
            for bit in range(min(8, columns - 8 * byte)):
                value = np.float32(0.0)
                if (bits >> bit) & 1:
                    value = kept[taken]
                    taken += 1
                weight[row, 8 * byte + bit] = value
