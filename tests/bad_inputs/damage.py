"""Damage to one file, by its format: what it is in the file system, its bytes, its content."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Damage = Callable[[Path], None]


def _replaced(make: Damage) -> Damage:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def _content(change: Callable[[bytes], bytes]) -> Damage:
    def damage(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))

    return damage


def _sparse(path: Path) -> None:
    os.truncate(path, 6 * 2**30)


def link_to(target: str) -> Damage:
    """The file is a link."""
    return _replaced(lambda path: path.symlink_to(target))


KINDS: dict[str, Damage] = {
    "a folder": _replaced(lambda path: path.mkdir()),
    "a pipe": _replaced(lambda path: os.mkfifo(path)),
    "a link to nothing": link_to("nowhere"),
    "a link to itself": _replaced(lambda path: path.symlink_to(path.name)),
    "a link to an endless device": link_to("/dev/zero"),
    "six gigabytes of nothing": _sparse,
}
"""What is no regular file, or too large: for every format."""
BYTES: dict[str, Damage] = {
    "empty": _content(lambda content: b""),
    "cut in the middle": _content(lambda content: content[: len(content) // 2]),
    "cut at its end": _content(lambda content: content.rstrip()[:-1]),
    "zeros": _content(lambda content: bytes(len(content))),
    "other bytes": _content(lambda content: bytes(255 - each for each in content)),
    "another format": _content(lambda content: b"\x7fELF\x02\x01\x01" + content[7:]),
}
"""Bytes that are of no format."""
DOCUMENTS: dict[str, str] = {
    "null": "null",
    "a number": "5",
    "a text": '"text"',
    "an empty object": "{}",
    "an empty list": "[]",
    "a list of numbers": "[1, 2]",
    "a list of null": "[null]",
    "an object of numbers": '{"a": 1}',
    "nested lists": "[" * 100_000 + "]" * 100_000,
    "nested objects": '{"a":' * 500 + "1" + "}" * 500,
    "a number of 5,000 digits": '{"a": ' + "9" * 5000 + "}",
    "NaN": "[NaN]",
    "a key twice": '{"a": 1, "a": 2}',
}
"""JSON of another shape."""
VALUES: dict[str, Any] = {
    "null": None, "a number": 7, "negative": -1, "beyond 64 bits": 10**30, "2**63 - 1": 2**63 - 1,
    "2**40": 2**40, "a fraction": 0.5, "a text": "x", "true": True, "a list": [], "nested": [[[]]],
    "an object": {}, "a list of objects": [{}],
}  # fmt: skip
"""In the place of one value."""


def retyped() -> dict[str, Damage]:
    """The whole document is of another shape."""
    return {
        name: (lambda path, text=text: path.write_text(text)) for name, text in DOCUMENTS.items()
    }


def fields(path: Path, most_depth: int = 2) -> Iterator[tuple[str | int, ...]]:
    """Where the values of a JSON file stand; of a list's items only the first."""
    text = path.read_text().split("\n")[0] if path.suffix == ".jsonl" else path.read_text()

    def below(value: Any, place: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
        if place:
            yield place
        if len(place) < most_depth and isinstance(value, dict):
            for key, item in value.items():
                yield from below(item, (*place, key))
        elif len(place) < most_depth and isinstance(value, list) and value:
            yield from below(value[0], (*place, 0))

    yield from below(json.loads(text), ())


def changed(place: tuple[str | int, ...], value: Any) -> Damage:
    """One value of a JSON file is another one; `...` removes it."""

    def damage(path: Path) -> None:
        lines = path.read_text().split("\n") if path.suffix == ".jsonl" else [path.read_text()]
        document = json.loads(lines[0])
        inner = document
        for part in place[:-1]:
            inner = inner[part]
        if value is ...:
            del inner[place[-1]]
        else:
            inner[place[-1]] = value
        path.write_text("\n".join([json.dumps(document), *lines[1:]]))

    return damage


def _header(change: Callable[[dict[str, Any]], None], length: int | None = None) -> Damage:
    def damage(path: Path) -> None:
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        told = len(text) if length is None else length
        path.write_bytes(told.to_bytes(8, "little") + text + content[8 + size :])

    return damage


def _first(header: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = header[max(name for name in header if name != "__metadata__")]
    return entry


def _as(dtype: str, width: int) -> Damage:
    """All tensors of another dtype of the same number of bytes."""

    def change(header: dict[str, Any]) -> None:
        for name, entry in header.items():
            if name != "__metadata__":
                entry["dtype"] = dtype
                entry["shape"] = [*entry["shape"][:-1], entry["shape"][-1] * 4 // width]

    return _header(change)


TENSORS: dict[str, Damage] = {
    **{f"weights of {dtype}": _as(dtype, width) for dtype, width in {
        "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1, "I16": 2, "I32": 4, "U32": 4,
    }.items()},
    "a dtype that nobody knows": _header(lambda header: _first(header).update(dtype="F3")),
    "a shape that does not fit": _header(lambda header: _first(header).update(shape=[3, 3])),
    "a shape beyond 64 bits": _header(lambda header: _first(header).update(shape=[2**62, 2**62])),
    "a negative shape": _header(lambda header: _first(header).update(shape=[-1, 4])),
    "offsets beyond the file": _header(lambda h: _first(h).update(data_offsets=[0, 2**50])),
    "offsets backwards": _header(lambda header: _first(header).update(data_offsets=[64, 0])),
    "a header of 2**60 bytes": _header(lambda header: None, 2**60),
    "a header of null": _header(lambda header: header.update(dict.fromkeys(header))),
    "no tensors": _header(lambda header: header.clear()),
    "one tensor less": _header(lambda header: header.pop(max(header)) and None),
    "one name changed": _header(lambda h: h.update(other=h.pop(max(h)))),
}  # fmt: skip
"""Headers of safetensors files."""


def elsewhere(path: Path) -> None:
    """The file lies outside of the folder, and a link leads there."""
    target = path.parent.parent / f"outside-{path.name}"
    shutil.move(path, target)
    path.symlink_to(target)
