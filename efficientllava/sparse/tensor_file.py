"""safetensors files written tensor by tensor, in any order, with a checksum of each.

The library's own writer takes all tensors of a file at once. Headers and the order of tensors are
the library's, so that a file that it wrote and that is written again here has the same bytes.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch

from efficientllava.errors import UserError
from efficientllava.reading import opened_tensors

ORDER = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""dtypes by their names in a file, in the order in which the library puts their tensors."""
NAMES = {dtype: name for name, dtype in ORDER.items()}


MOST = 4
"""Matrices in memory at the same time."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Entry:
    """A tensor of a file.

    Attributes:
        dtype: by its name in a file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return prod(self.shape) * ORDER[self.dtype].itemsize

    @property
    def rank(self) -> tuple[int, str]:
        """Its place among the tensors of a file."""
        return list(ORDER).index(self.dtype), self.name


def entry_of(name: str, tensor: torch.Tensor) -> Entry:
    """The entry of a tensor."""
    return Entry(name, NAMES[tensor.dtype], tuple(tensor.shape))


def entries_of(file: Path) -> dict[str, Entry]:
    """What a file's header says of its tensors, by name.

    Raises:
        UserError: one has a dtype that is not known here.
    """
    entries = {}
    with opened_tensors(file) as opened:
        for name in opened.keys():
            part = opened.get_slice(name)
            if part.get_dtype() not in ORDER:
                raise UserError(f"{name} has the unknown dtype {part.get_dtype()}", str(file))
            entries[name] = Entry(name, part.get_dtype(), tuple(part.get_shape()))
    return entries


def metadata_of(file: Path) -> dict[str, str]:
    """The metadata in a file's header."""
    with opened_tensors(file) as opened:
        return dict(opened.metadata() or {})


def bytes_of(tensor: torch.Tensor) -> Any:
    """A tensor's bytes as they lie in a file; no copy of a contiguous one on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def checksum(tensor: torch.Tensor) -> str:
    """CRC-32 over dtype, shape and bytes, as eight hexadecimal digits."""
    told = f"{NAMES[tensor.dtype]} {json.dumps(list(tensor.shape))}"
    return f"{zlib.crc32(bytes_of(tensor), zlib.crc32(told.encode())):08x}"


class TensorFile:
    """A file under way: its size is known, its tensors arrive in any order and from any thread.

    Args:
        entries: all tensors of the file.
        in_parts: names of those that arrive in parts along their first dimension.
    """

    def __init__(
        self, path: Path, entries: Iterable[Entry], in_parts: Collection[str] = ()
    ) -> None:
        self.path = path
        self.entries = {entry.name: entry for entry in sorted(entries, key=lambda each: each.rank)}
        self.checksums = dict.fromkeys(self.entries, "0" * 8)
        self._lacking: set[tuple[str, int | None]] = {
            (name, part)
            for name, entry in self.entries.items()
            for part in (range(entry.shape[0]) if name in in_parts else (None,))
        }
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._begin = 0

    def begin(self, metadata: Mapping[str, str]) -> None:
        """Fix the length of the header: metadata of this length are written by `finish`."""
        self._begin = len(self._header(metadata))

    def write(self, name: str, tensor: torch.Tensor, part: int | None = None) -> None:
        """Write one tensor in its place, or a part of it; a tensor in parts gets no checksum."""
        entry, place = self.entries[name], self._begin + self._offsets()[name][0]
        if part is not None:
            entry = Entry(name, entry.dtype, entry.shape[1:])
            place += part * entry.nbytes
        if entry != entry_of(name, tensor):
            raise ValueError(f"{name}: {entry_of(name, tensor)} for {entry}")
        left = bytes_of(tensor)
        if part is None:
            self.checksums[name] = checksum(tensor)
        while left:
            written = os.pwrite(self._file, left, place)
            left, place = left[written:], place + written
        self._lacking.discard((name, part))

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the header and close the file.

        Raises:
            ValueError: a tensor was not written, or the metadata have another length than before.
        """
        header = self._header(metadata)
        if len(header) != self._begin or self._lacking:
            raise ValueError(f"{self.path}: {len(header)} bytes of header, {self._lacking} lacking")
        os.pwrite(self._file, header, 0)
        os.fsync(self._file)
        self.close()

    def close(self) -> None:
        """Close the file, finished or not."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _offsets(self) -> dict[str, tuple[int, int]]:
        if not hasattr(self, "_places"):
            self._places, end = {}, 0
            for name, entry in self.entries.items():
                self._places[name] = (end, end + entry.nbytes)
                end += entry.nbytes
        return self._places

    def _header(self, metadata: Mapping[str, str]) -> bytes:
        content: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        for name, entry in self.entries.items():
            content[name] = {
                "dtype": entry.dtype,
                "shape": list(entry.shape),
                "data_offsets": list(self._offsets()[name]),
            }
        text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


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
