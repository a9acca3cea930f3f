"""Answers kept line by line while they come, so that a killed run goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from pydantic import BaseModel

from efficientllava.errors import UserError
from efficientllava.files import replacing
from efficientllava.reading import checked, parse_json, read_bytes


class _Line(BaseModel):
    """One answer."""

    key: str
    text: str


class Journal:
    """A work file of {key, text} lines; a line that a kill cut off is dropped."""

    def __init__(self, path: Path) -> None:
        """Read what is there."""
        self.path = Path(path)
        self.texts: dict[str, str] = {}
        self._file: IO[str] | None = None
        if self.path.exists():
            for line in read_bytes(self.path).decode(errors="replace").split("\n"):
                try:
                    row = checked(parse_json(line, str(path)), _Line, str(path))
                except UserError:
                    continue
                self.texts[row.key] = row.text

    def __enter__(self) -> Self:
        # rewrite whole lines only, so that the next answer starts on a new line
        with replacing(self.path) as temporary:
            lines = (_line(key, text) for key, text in self.texts.items())
            temporary.write_text("".join(lines), encoding="utf-8")
        self._file = open(self.path, "a", encoding="utf-8")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def add(self, key: str, text: str) -> None:
        """Keep an answer; on disk when this returns, so far as the kernel is concerned."""
        assert self._file is not None, "open the journal with `with`"
        self.texts[key] = text
        self._file.write(_line(key, text))
        self._file.flush()


def _line(key: str, text: str) -> str:
    return json.dumps({"key": key, "text": text}) + "\n"
