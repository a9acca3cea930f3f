"""The same work on many items, a few at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

MOST = 4
"""Matrices in memory at the same time."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results in the order of the items, by as many threads as torch has, up to four.

    The first error ends the work: items that have not begun are dropped.
    """
    pool = ThreadPoolExecutor(min(MOST, torch.get_num_threads()))
    try:
        for done in [pool.submit(work, item) for item in items]:
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)
