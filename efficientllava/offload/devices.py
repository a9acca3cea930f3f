"""The device a process computes on: named by the user, checked before anything is done."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from efficientllava.errors import UserError
from efficientllava.parameters.machine import DEVICE


def require_device(name: str, where: str = "params.yaml, machine.device") -> torch.device:
    """The device of a name that `machine.device` allows.

    Args:
        name: "cpu", "cuda" (the first GPU this process sees) or "cuda:N".
        where: the setting's name in messages.

    Raises:
        UserError: it is none of these; torch has no CUDA, sees no GPU, or none of that number.
    """
    where = f"{where}: {name}"
    if not re.fullmatch(DEVICE, name):
        raise UserError("is no device", where=where, remedy="give cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        built = torch.version.cuda
        raise UserError(
            "this torch was built for the CPU alone" if built is None else "torch sees no GPU",
            where=where,
            remedy="install torch's CUDA build (https://pytorch.org), or compute on the cpu"
            if built is None
            else "look at `nvidia-smi` and CUDA_VISIBLE_DEVICES, or compute on the cpu",
        )
    count = torch.cuda.device_count()
    if (index := device.index or 0) >= count:
        raise UserError(
            f"torch sees {count} GPU{'s' if count != 1 else ''}, numbered from 0",
            where=where,
            remedy=f"use cuda:0 to cuda:{count - 1}",
        )
    return torch.device("cuda", index)


@contextmanager
def enough_memory(
    device: str,
    remedy: str = "free some, or use fewer segments or pairs, or set search.kl_tokens",
) -> Iterator[None]:
    """Report memory that runs out as an error of the user.

    Args:
        device: the name that the user gave.
        remedy: what helps on the host.

    Raises:
        UserError: an allocation fails, on the device or on the host.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        plain = type(error) is RuntimeError
        if plain and "can't allocate memory" not in str(error):
            raise
        host = plain or isinstance(error, MemoryError) or device == "cpu"
        raise UserError(
            "the memory does not suffice; finished work is kept",
            where="this machine" if host else f"device {device}",
            remedy=remedy if host else f"{remedy} or a smaller machine.device_memory",
        ) from error


def open_device(name: str) -> torch.device:
    """The device of a name, and this process set to compute on it as reproducibly as it can.

    On CUDA: float32 stays float32 (no TF32), and operations of which torch has a deterministic
    form use it. Of the others that are used here, the k-th value is the same however it is found;
    attention's backward pass with a mask is not promised to be (docs/devices.md).

    Raises:
        UserError: see `require_device`.
    """
    device = require_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # before the first product: cuBLAS reads it once
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.fp32_precision = "ieee"  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return device


def describe(device: torch.device) -> str:
    """A device as it decides the bits of a result: "cpu", or the GPU's name."""
    return device.type if device.type == "cpu" else torch.cuda.get_device_name(device)


def usable_memory(device: torch.device, limit: float | None) -> int:
    """Bytes of a device that may be used.

    Args:
        limit: GiB (`machine.device_memory`); what is free now when None.
    """
    if limit is not None:
        return int(limit * 2**30)
    if device.type == "cpu":
        return host_memory()
    free, _ = torch.cuda.mem_get_info(device)
    # what torch holds for later is this process' own
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def host_memory() -> int:
    """Bytes of the host that are free for new data."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
