"""Runs a kernel on as many threads as torch uses: torch's own, where OpenMP can be asked."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch

_kernel_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p)  # lets other Python threads run


@cache
def _function(address: int) -> Any:
    return _kernel_type(address)


@cache
def _parallel() -> Any:
    """GOMP_parallel of the OpenMP that torch itself uses; None where there is none."""
    for file in sorted((Path(torch.__file__).parent / "lib").glob("*torch_cpu.*")):
        try:
            found = ctypes.CDLL(str(file)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        found.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        found.restype = None
        return found
    return None


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="efficientllava-sparse")


def run_kernel(address: int, arguments: Sequence[int], blocks: int) -> None:
    """Call a kernel's `work`; it returns when all blocks are done.

    Args:
        arguments: see `arguments.Call` and `arguments.Matrix`.
        blocks: of rows; no more threads are used.
    """
    threads = min(torch.get_num_threads(), blocks)
    memory = (ctypes.c_int64 * len(arguments))(*arguments)
    place = ctypes.addressof(memory)
    if threads <= 1:
        _function(address)(place)
    elif (parallel := _parallel()) is not None:
        parallel(address, place, threads, 0)
    else:
        work = _function(address)
        others = [_pool(threads - 1).submit(work, place) for _ in range(threads - 1)]
        work(place)
        for each in others:
            each.result()
