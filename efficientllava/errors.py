"""The one error a user can mend: bad parameters, bad data, no room left."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_USER = re.compile(r"(?<=://)[^/\s'\"]*@")


def without_users(text: str) -> str:
    """A text whose addresses show no user name and no password: http://***@host."""
    return _USER.sub("***@", text)


class UserError(Exception):
    """What is wrong, where, and what to do about it.

    Command lines print the message without a traceback and exit with code 2. Anything else
    that escapes is a defect of ours and keeps its traceback. Passwords in addresses are hidden.
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
