"""OBS on a GPU: a stack of rows goes through the blocks of columns without the host looking on.

Of every block: four counts of digits find the key below which each section's quota lies (radix
selection, exact, no sort), one more shares out equal keys, one kernel prunes, and one matrix
product spreads the errors to the columns on the right. Twelve launches, no synchronisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise

import torch
import triton

from efficientllava.kernels.plan import Plan
from efficientllava.kernels.triton.triton_kernels import (
    BINS,
    count_digits,
    count_equal,
    narrow,
    prune_tile,
    share_out,
)

ROWS = 32
"""Rows of the part of a tile that goes through the column loop, 32 weights a lane of one warp."""
TALL = 128
"""Rows of a tile, which one program counts."""
COUNTED = 4096
"""Weights that a program counts at a time, 32 in the registers of each of 128 threads."""
_ROUNDING = {"enable_fp_fusion": False}
"""A product and a difference are rounded one by one, as in the eager path."""


class Blocks:
    """The column loop over a stack, block of columns by block.

    Args:
        weights: matrices [rows_i, columns], each stacked `repetitions` times.
        upper, dead: of the factor, float32.
    """

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        repetitions: int,
        upper: torch.Tensor,
        dead: torch.Tensor,
        plan: Plan,
    ) -> None:
        device, rows, starts = upper.device, plan.rows, plan.starts
        self.rows, self.starts, self.group_size = rows, starts, plan.group_size
        self.upper, self.dead = upper.contiguous(), dead.to(torch.uint8)
        self.stack = torch.empty(rows[-1], starts[-1], device=device)
        for index, (top, bottom) in enumerate(pairwise(rows)):
            self.stack[top:bottom] = weights[index // repetitions]
        self.stack.masked_fill_(dead, 0.0)
        widest = max(end - start for start, end in pairwise(starts))
        self.width = max(16, triton.next_power_of_2(widest))
        self.part = max(1, min(TALL, COUNTED // self.width))
        # [columns, rows]: the errors of one column are contiguous, every line aligned
        padded = triton.cdiv(rows[-1], TALL) * TALL
        self.errors = torch.empty(widest, padded, device=device)
        cut = [
            (top, min(top + TALL, end), index)
            for index, (start, end) in enumerate(pairwise(rows))
            for top in range(start, end, TALL)
        ]
        tiles = torch.tensor(cut, dtype=torch.int32).T.contiguous().to(device)
        self.tops, self.bottoms, self.sections = tiles
        self.bounds = torch.tensor(rows, dtype=torch.int32, device=device)
        self.counts = torch.tensor(plan.counts, dtype=torch.int32, device=device)
        self.quotas = torch.tensor(plan.quotas, dtype=torch.int32, device=device).T.contiguous()
        count = len(rows) - 1
        self.histograms = torch.zeros(count, BINS, dtype=torch.int32, device=device)
        self.limits, self.rest = self.counts.new_zeros(count), self.counts.new_zeros(count)
        self.equal, self.allowed = self.counts.new_zeros(2, rows[-1])

    def prune(self, number: int) -> None:
        """Choose the masks of a block, prune it, spread the errors to the right."""
        start, end = self.starts[number], self.starts[number + 1]
        width, columns = end - start, self.starts[-1]
        if self.group_size is None:
            self.select(number)
        stack, *others = self._pointers(start)
        prune_tile[(len(self.tops), TALL // ROWS)](
            stack,
            self.errors,
            *others,
            self.limits,
            self.allowed,
            self.counts,
            columns,
            width,
            self.errors.stride(0),
            GROUP=self.group_size or 0,
            ROWS=ROWS,
            num_warps=1,
            **_ROUNDING,
        )
        if end < columns:
            # views with the stack's and U's own strides: nothing is copied
            self.stack[:, end:].addmm_(
                self.errors[:width, : self.rows[-1]].T, self.upper[start:end, end:], alpha=-1.0
            )

    def select(self, number: int) -> None:
        """Find each section's `limits` in a block, and how many equal scores are `allowed`."""
        start, end = self.starts[number], self.starts[number + 1]
        pointers, shape = self._pointers(start), (self.starts[-1], end - start)
        tile = {"ROWS": self.part, "WIDTH": self.width}
        tiles, sections = (len(self.tops),), (len(self.limits),)
        for shift in (24, 16, 8, 0):
            first = shift == 24
            count_digits[tiles](
                *pointers,
                self.limits,
                self.histograms,
                *shape,
                FIRST=first,
                SHIFT=shift,
                BINS=BINS,
                **tile,
                **_ROUNDING,
            )
            narrow[sections](
                self.histograms, self.quotas[number], self.rest, self.limits, first, BINS
            )
        count_equal[tiles](*pointers, self.limits, self.equal, *shape, **tile, **_ROUNDING)
        share_out[sections](self.equal, self.rest, self.bounds, self.allowed, 1024)

    def _pointers(self, start: int) -> tuple[torch.Tensor, ...]:
        return (
            self.stack[:, start:],
            self.upper[start:, start:],
            self.dead[start:],
            self.tops,
            self.bottoms,
            self.sections,
        )

    def solutions(self) -> list[torch.Tensor]:
        """The sections of the stack, each [rows_i, columns]."""
        return [self.stack[top:bottom] for top, bottom in pairwise(self.rows)]


def prune_stack(blocks: Blocks) -> list[torch.Tensor]:
    """All blocks, from left to right; the solutions by section."""
    device = blocks.stack.device
    # Triton launches on the current card, which need not be the tensors'
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        for number in range(len(blocks.starts) - 1):
            blocks.prune(number)
    return blocks.solutions()
