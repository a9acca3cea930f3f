"""JSON and JSON lines as benchmarks and predictions come: whole, or told where they break."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficientllava.errors import UserError
from efficientllava.reading import parse_json, read_text


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
        raise UserError(
            f"lacks {' or '.join(names)}", self.where, "see the formats in docs/evaluate.md"
        )

    def identity(self, *names: str) -> str:
        """A field that identifies: text or a whole number, as text.

        Raises:
            UserError: the field is missing, empty or something else.
        """
        value = self.value(*names)
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise UserError(f"{names[0]} must be text or a number: {value!r}", where=self.where)
        return str(value)


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
        value = parse_json(text, str(path))
    except UserError:
        if Path(path).suffix == ".jsonl" or _is_record(text.lstrip().split("\n")[0], path):
            return list(_rows(text, Path(path)))
        raise
    if isinstance(value, dict) and ("question_id" in value or Path(path).suffix == ".jsonl"):
        return list(_rows(text, Path(path)))  # a single line
    return value


def _is_record(line: str, path: Path) -> bool:
    try:
        return isinstance(parse_json(line, str(path)), dict)
    except UserError:
        return False


def _rows(text: str, path: Path) -> Iterator[Row]:
    # not splitlines: it also cuts at characters that may stand inside of JSON text
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        value = parse_json(line, where)
        if not isinstance(value, dict):
            raise UserError("is no record of fields", where=where)
        yield Row(value, where)
