"""Ratios that differ from block to block: the shift that keeps their mean, and when they may."""

from __future__ import annotations

from collections.abc import Sequence

from efficientllava.errors import UserError


def shifted_to(raw: Sequence[float], sizes: Sequence[int], ratio: float) -> list[float]:
    """Ratios in [0, 1] that differ from given ones by one shift, with the given weighted mean."""
    # clipping to [0, 1] changes the mean: find the shift that gives it back (monotone)
    reach, total = max(map(abs, raw)), sum(sizes)
    bottom, top = -1.0 - reach, 1.0 + reach

    def mean(shift: float) -> float:
        return sum(_clipped(r + shift) * size for r, size in zip(raw, sizes, strict=True)) / total

    for _ in range(200):
        middle = (bottom + top) / 2
        bottom, top = (middle, top) if mean(middle) < ratio else (bottom, middle)
    return [_clipped(r + top) for r in raw]


def _clipped(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def require_free_ratios(method: str, named: str, group_size: int | None) -> None:
    """Check that no n:m pattern fixes the ratios.

    Raises:
        UserError: one does.
    """
    if group_size is not None:
        raise UserError(
            f"{method} gives every block a ratio of its own, {named} fix them",
            where="params.yaml, obs.pattern",
            remedy=f"use `unstructured` with {method}, or leave {method} out of methods",
        )
