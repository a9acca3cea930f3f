"""The visual tokens that a block changes most."""

from __future__ import annotations

import torch
from torch.nn import functional


def drifting(
    before: torch.Tensor, after: torch.Tensor, visual: torch.Tensor, share: float
) -> torch.Tensor:
    """The visual tokens whose representation a block changes most (ATV-Pruning, CVPR 2026).

    The change is 1 - cos(x, x'); of each sample the largest ceil(share * visual tokens) count.

    Args:
        before: x [B, T, d], entering the block.
        after: x' [B, T, d], leaving it.
        visual: [B, T] bool.

    Returns:
        [B, T] bool, a part of `visual`.
    """
    change = 1.0 - functional.cosine_similarity(before.float(), after.float(), dim=-1)
    return largest_share(change, visual, share)


def largest_share(score: torch.Tensor, among: torch.Tensor, share: float) -> torch.Tensor:
    """Of each row, the ceil(share * n) positions with the largest score among n marked ones.

    Args:
        score: [B, T].
        among: [B, T] bool.

    Returns:
        [B, T] bool; of equal scores the earlier position.
    """
    counts = (among.sum(dim=1).double() * share).sub(1e-9).ceil().clamp(min=0)
    order = score.masked_fill(~among, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return (order.argsort(dim=1) < counts[:, None]) & among
