"""Regular files, opened without waiting: no folder, pipe or device, and no more than fits."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from os import PathLike
from pathlib import Path

from efficientllava.errors import UserError

LARGEST_TEXT = 256 * 2**20
"""Bytes of a text file: in memory a character takes up to four."""
PUT_THERE = "put the file itself there"


def expanded(path: str | Path) -> Path:
    """A path as a user gave it, with ~ as the home folder.

    Raises:
        UserError: it is no path, no file can have this name, or the user after ~ has no home.
    """
    if not isinstance(path, str | PathLike):
        raise UserError(f"no path: it is {type(path).__name__}", where=repr(path)[:80])
    text = str(path)
    if "\0" in text:
        raise UserError("no path: it holds a zero byte", where=repr(text))
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"no path ({error})", where=text) from error


def open_regular(path: Path, most: int | None = None) -> BufferedReader:
    """Open a regular file for reading.

    Args:
        most: bytes it may hold; any number when None.

    Raises:
        UserError: there is none, it cannot be read, it is a folder, a pipe, a socket or a
            device, or it is larger.
    """
    try:
        # without O_NONBLOCK a pipe would wait for its writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, ValueError) as error:
        if "\0" not in str(path) and os.path.islink(path):
            raise _not_regular(path) from error
        raise UserError("no such file", where=str(path)) from error
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ELOOP):  # a socket; a link to itself
            raise _not_regular(path) from error
        raise UserError(f"cannot be read ({error.strerror})", where=str(path)) from error
    status = os.fstat(descriptor)
    try:
        if stat.S_ISDIR(status.st_mode):
            raise UserError("is a folder, not a file", where=str(path), remedy=PUT_THERE)
        if not stat.S_ISREG(status.st_mode):
            raise _not_regular(path)
        if most is not None and status.st_size > most:
            raise _too_large(path, status.st_size, most)
    except UserError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def require_regular(path: Path, most: int | None = None) -> None:
    """Check that a file can be opened: for libraries that open it by its name.

    Raises:
        UserError: as `open_regular`.
    """
    open_regular(path, most).close()


def read_bytes(path: Path, most: int = LARGEST_TEXT) -> bytes:
    """The bytes of a regular file.

    Raises:
        UserError: as `open_regular`.
    """
    with open_regular(path, most) as file:
        try:
            content = file.read(most + 1)
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror})", where=str(path)) from error
    if len(content) > most:  # it grew, or stated no size
        raise _too_large(path, len(content), most)
    return content


def read_text(path: Path, most: int = LARGEST_TEXT) -> str:
    """A file's UTF-8 text, without a byte order mark at its start; line ends become one newline.

    Raises:
        UserError: as `open_regular`; it is not UTF-8.
    """
    try:
        text = read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"not UTF-8 text ({error.reason} at byte {error.start})",
            where=str(path),
            remedy="convert it, e.g. with iconv -t UTF-8",
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _not_regular(path: Path) -> UserError:
    return UserError(
        "no regular file (a pipe, a socket, a device, or a link that leads to none)",
        where=str(path),
        remedy=PUT_THERE,
    )


def _too_large(path: Path, size: int, most: int) -> UserError:
    return UserError(
        f"holds {size / 2**20:,.1f} MiB, at most {most / 2**20:,.1f} MiB are read", where=str(path)
    )
