"""Float32 that is float32: CUDA's matrix products without TF32, whatever the program has set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Inside, float32 matrix products on CUDA keep all 24 bits; the setting is restored afterwards.

    TF32 keeps 11 bits of a factor: errors of OBS's updates would add up over the columns. On a CPU
    this changes nothing. Also a decorator.
    """
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before
