"""JSON and JSON lines as benchmarks and predictions come: whole, or told where they break."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficientllava.errors import UserError


@dataclass(frozen=True)
class Row:
    """One record and where it stands, for messages."""

    values: Mapping[str, Any]
    where: str

    def text(self, name: str) -> str:
        """A field that must be text.

        Raises:
            UserError: the field is missing or something else.
        """
        value = self.value(name)
        if not isinstance(value, str):
            raise UserError(f"{name} must be text, not {value!r}", where=self.where)
        return value

    def value(self, *names: str) -> Any:
        """A field that must be there, under the first of its names that is.

        Raises:
            UserError: there is none.
        """
        for name in names:
            if name in self.values:
                return self.values[name]
        raise UserError(f"lacks {' or '.join(names)}", where=self.where)

    def identity(self, *names: str) -> str:
        """A field that identifies: text or a whole number, as text.

        Raises:
            UserError: the field is missing, empty or something else.
        """
        value = self.value(*names)
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise UserError(f"{names[0]} must be text or a number: {value!r}", where=self.where)
        return str(value)


def read_text(path: Path) -> str:
    """A file's UTF-8 text, without a byte order mark at its start.

    Raises:
        UserError: the file is missing, a folder or not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError("no such file", where=str(path)) from error
    except IsADirectoryError as error:
        raise UserError("is a folder, not a file", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text ({error.reason})", where=str(path)) from error


def read_lines(path: Path) -> list[Row]:
    """The records of a JSON-lines file; empty lines are passed over.

    Raises:
        UserError: naming the line that is cut off or no record, or the file that has none.
    """
    rows = list(_rows(read_text(path), Path(path)))
    if not rows:
        raise UserError("holds no records", where=str(path))
    return rows


def read_document(path: Path) -> Any:
    """A JSON file that is one value; a file of JSON lines as its list of Rows.

    Raises:
        UserError: the file is neither; says at which line it breaks.
    """
    text = read_text(path)
    if not text.strip():
        raise UserError("is empty", where=str(path))
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if Path(path).suffix == ".jsonl" or _is_record(text.lstrip().splitlines()[0]):
            return read_lines(path)
        raise UserError(
            f"not valid JSON ({error.msg})",
            where=f"{path}, line {error.lineno}",
            remedy="the file may be cut off: copy it again",
        ) from error
    except RecursionError as error:
        raise UserError("not valid JSON (nested too deeply)", where=str(path)) from error
    if isinstance(value, dict) and ("question_id" in value or Path(path).suffix == ".jsonl"):
        return read_lines(path)  # a single line
    return value


def _is_record(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False


def _rows(text: str, path: Path) -> Iterator[Row]:
    # not splitlines: it also cuts at characters that may stand inside of JSON text
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(
                f"not valid JSON, cut off perhaps ({error})",
                where=where,
                remedy="complete or remove the line",
            ) from error
        if not isinstance(value, dict):
            raise UserError("is no record of fields", where=where)
        yield Row(value, where)
