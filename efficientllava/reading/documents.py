"""JSON of bounded size, depth and numbers; schemas by pydantic, with the field in the message."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from efficientllava.errors import UserError
from efficientllava.reading.regular import read_text

LARGEST = 128 * 2**20
"""Bytes of a JSON file; as Python's objects up to twenty-five times as many."""
DEEPEST = 64
"""Lists and mappings inside each other."""
DIGITS = 19
"""Of a whole number: more do not fit into 64 bits."""
COPY = "it may be cut off or damaged: copy it again; in a work folder remove it, it is made again"


class _Unusual(ValueError):
    """JSON that a parser takes and we do not."""


def read_json(path: Path, most: int = LARGEST, constants: bool = False) -> Any:
    """Read a JSON file; a byte order mark at its start is passed over.

    Args:
        most: bytes of the file.
        constants: take NaN and Infinity, which are not JSON, and which configurations hold.

    Raises:
        UserError: as `read_text`; the file is not JSON, too deep, names a key twice in one
            object, or holds a number beyond 64 bits.
    """
    return parse_json(read_text(Path(path), most), str(path), constants)


def parse_json(text: str, where: str, constants: bool = False) -> Any:
    """A JSON text's value.

    Args:
        where: what messages call it.

    Raises:
        UserError: as `read_json`, caused by `json.JSONDecodeError` where it is no JSON at all.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_distinct,
            parse_int=_whole,
            parse_constant=None if constants else _refuse_constant,
        )
        _require_shallow(value)
    except json.JSONDecodeError as error:
        problem = f"{error.msg}: line {error.lineno}, column {error.colno}"
        raise UserError(f"not valid JSON ({problem})", where, COPY) from error
    except _Unusual as error:
        raise UserError(str(error), where) from error
    except RecursionError as error:
        raise UserError(f"nested deeper than {DEEPEST} levels", where) from error
    return value


def read_json_lines(path: Path) -> list[Any]:
    """The values of a file of JSON lines; empty lines are passed over.

    Raises:
        UserError: as `read_json`, naming the line.
    """
    return list(_lines(read_text(path), path))


def _lines(text: str, path: Path) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield parse_json(line, f"{path}, line {number}")


def checked(value: Any, schema: Any, where: str, remedy: str = "") -> Any:
    """A value that fits a schema (a type that pydantic knows), converted to it.

    Raises:
        UserError: it does not; it names the first field that does not fit.
    """
    try:
        return TypeAdapter(schema).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    given = reprlib.repr(first["input"])
    problem = f"{first['msg']} (given: {given})"
    raise UserError(f"{field}: {problem}" if field else problem, where, remedy)


def _distinct(items: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(items)
    if len(values) != len(items):
        names = [name for name, _ in items]
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise _Unusual(f"names {reprlib.repr(twice)} twice in one object")
    return values


def _whole(digits: str) -> int:
    if len(digits) > DIGITS + 1 or abs(number := int(digits)) >= 2**63:
        raise _Unusual(f"a whole number beyond 64 bits ({reprlib.repr(digits)})")
    return number


def _refuse_constant(name: str) -> None:
    raise _Unusual(f"{name} is no number in JSON")


def _require_shallow(value: Any) -> None:
    waiting = [(value, 1)]
    while waiting:
        container, depth = waiting.pop()
        if depth > DEEPEST:
            raise RecursionError
        items = container.values() if isinstance(container, dict) else container
        if isinstance(container, dict | list):
            waiting += [(item, depth + 1) for item in items if isinstance(item, dict | list)]
