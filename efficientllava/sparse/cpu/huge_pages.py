"""Memory in pages of 2 MiB: weights are read once a token, and small pages cost a walk each."""

from __future__ import annotations

import mmap

import torch

BLOCK = 64 << 20
"""Bytes that are asked for at a time; small tensors lie side by side in them."""
HUGE = 2 << 20
ALIGNED = 64


class HugePages:
    """Puts tensors into memory that Linux maps by huge pages, if it grants them.

    A block is given back when the last tensor in it is. Where the system has no such pages tensors
    stay where they are.
    """

    def __init__(self) -> None:
        self._left = torch.empty(0, dtype=torch.uint8)

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        """A contiguous copy of a tensor on the CPU; the tensor itself on other devices."""
        if not hasattr(mmap, "MADV_HUGEPAGE") or not tensor.is_cpu or not tensor.numel():
            return tensor
        size = -(-tensor.nbytes // ALIGNED) * ALIGNED
        if size > len(self._left):
            self._left = _block(max(BLOCK, size))
        memory, self._left = self._left[: tensor.nbytes], self._left[size:]
        return memory.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def _block(size: int) -> torch.Tensor:
    # private: Python's default is shared memory, which has no huge pages
    memory = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    block = torch.frombuffer(memory, dtype=torch.uint8)  # holds the memory
    skipped = -block.data_ptr() % HUGE
    return block[skipped : skipped + size]
