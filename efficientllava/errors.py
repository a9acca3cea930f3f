"""The error that a user can fix: bad parameters, bad data, a full disk."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_USER = re.compile(r"(?<=://)[^/\s'\"]*@")

UNWRITABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
    errno.EBUSY,
)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No room on the disk, or none within a limit of the user's or of a file's size."""
OS_ERROR = re.compile(r"(?:os error |\[Errno )(\d+)")
SQLITE_ERRORS = {
    "database or disk is full": errno.ENOSPC,
    "disk I/O error": errno.EFBIG,  # so it calls a limit of a file's size
    "unable to open database file": errno.EACCES,
    "attempt to write a readonly database": errno.EROFS,
}


def without_users(text: str) -> str:
    """A text whose addresses show no user name and no password: http://***@host."""
    return _USER.sub("***@", text)


def hint(name: str, known: Collection[str], title: str = "known") -> str:
    """The known name that is nearest to a wrong one, or all known names."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"{title}: {', '.join(known)}"


class UserError(Exception):
    """An error that a user can fix: what is wrong, where, and a remedy.

    Command lines print the message without a traceback and exit with code 2. Any other exception
    is a defect of this program and keeps its traceback. Passwords in addresses are hidden.
    """

    def __init__(self, what: str, where: str = "", remedy: str = "") -> None:
        self.what, self.where = without_users(what), without_users(where)
        self.remedy = without_users(remedy)
        super().__init__(str(self))

    def __str__(self) -> str:
        message = f"{self.where}: {self.what}" if self.where else self.what
        return f"{message}\n  -> {self.remedy}" if self.remedy else message

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        return type(self), (self.what, self.where, self.remedy)


def disk_error(error: BaseException, path: Path | None = None) -> UserError | None:
    """The error as the user should read it, if it is about a disk.

    safetensors, SQLite and DVC hide the number of the system's error in their messages.

    Args:
        path: that was being written; None to name the one that the error names.
    """
    number, problem = _system_error(error)
    named = error.filename if isinstance(error, OSError) else None
    where = f"writing {path or named}" if path or named else "writing a file"
    if number in FULL:
        return UserError(
            f"the disk is full ({problem}); nothing that was finished has been changed",
            where=where,
            remedy="make room, or raise the limit, and start again: the run resumes",
        )
    if number in UNWRITABLE:
        remedy = "let it be written, or name a place that you may write"
        return UserError(f"it cannot be written ({problem})", where, remedy)
    return None


def _system_error(error: BaseException) -> tuple[int | None, str]:
    """The number of the system's error, and its words."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := OS_ERROR.search(str(error))) is not None:
        number = int(found[1])
    if number is not None:
        return number, os.strerror(number)
    for words, number in SQLITE_ERRORS.items():
        if words in str(error):
            return number, f"SQLite: {words}"
    return None, ""


@contextmanager
def library_reads(
    what: str, where: str, remedy: str = "", packages: bool = False
) -> Iterator[None]:
    """Name the file from outside at which a library fails: most check little of what they read.

    Args:
        packages: name it for a missing package too, of which the remedy says which it is.

    Raises:
        UserError: in the place of any other error; one of our own as it is.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # tokenizers' panics are no Exception
        if isinstance(error, ImportError) and not packages:
            raise
        first = (str(error).strip().splitlines() or [""])[0][:300]
        problem = f"{what}: {type(error).__name__}{first and ': '}{first}"
        raise UserError(problem, where, remedy) from error


@contextmanager
def renaming(names: Mapping[str, str]) -> Iterator[None]:
    """Name the option or argument of the caller where the library names params.yaml.

    Args:
        names: beginnings of `where`, and what replaces them; the first that fits counts.
    """
    try:
        yield
    except UserError as error:
        for name, own in names.items():
            if error.where.startswith(name):
                where = own + error.where.removeprefix(name)
                raise UserError(error.what, where, error.remedy) from error.__cause__
        raise
