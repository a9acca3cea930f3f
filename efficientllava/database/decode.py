"""A bitmask and its weights as a matrix on the CPU, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

compiled: Callable[..., Any] = numba.njit(nogil=True, cache=True)


@compiled
def decode(mask, kept, weight):  # type: ignore[no-untyped-def]
    """Write the kept weights [n] where a bitmask [rows, bytes] has a bit, zeros elsewhere."""
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
