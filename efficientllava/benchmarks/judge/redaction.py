"""Texts of a judge's server without the secrets that it was sent.

A server may repeat a secret whole or in part, URL-encoded, escaped as in JSON, or broken over
lines. All of these are found: a text is compared letter by letter as it reads when decoded.
"""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

MARK = "***"
FRAGMENT = 8
"""So many letters of a secret in a row are taken out; fewer tell nothing."""
SHORTEST = 4
"""Shorter secrets protect nothing, and would be found in every message."""
CLIENT_LOGGERS = ("openai", "httpx", "httpx2", "httpcore", "httpcore2")
"""The packages of the judge's client, by the first part of their loggers' names."""

# a letter as it is, or encoded once or several times over
_LETTER = re.compile(
    r"(?:%(?:25)*|\\+x|\\+u00)(?P<code>[0-9a-fA-F]{2})"
    r"|(?P<break>\\+[nrt])|\\+(?P<escaped>[^\\])|(?P<plain>.)",
    re.DOTALL,
)


def secrets_of(key: str, address: str) -> tuple[str, ...]:
    """The secrets of a key and a server's address: the key, and the password in the address.

    Where an address holds a user name alone, that name is the secret.
    """
    user = user_of(address)
    if not user:
        return (key,) if key else ()
    basic = base64.b64encode(unquote(user).encode()).decode().rstrip("=")
    return tuple(
        secret for secret in (key, user.partition(":")[2] or user.rstrip(":"), basic) if secret
    )


def user_of(address: str) -> str:
    """The part of an address before its host, as in http://USER:PASSWORD@HOST; mostly empty."""
    if "@" not in address:
        return ""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None  # a character of the password ends the address too early
    before = parts.netloc if host else address.partition("://")[2] or address
    return before.rpartition("@")[0]


def shown(address: str) -> str:
    """An address without user name and password."""
    user = user_of(address)
    return address.replace(f"{user}@", "", 1) if user else address


def without_secrets(text: str, secrets: Sequence[str], shortest: int = SHORTEST) -> str:
    """A text with `MARK` in place of every secret, and of every `FRAGMENT` letters of one.

    Args:
        shortest: secrets of fewer letters are left.
    """
    letters, spans = _decoded(text)
    hidden = [False] * len(letters)
    for secret in _spellings(secrets):
        if len(secret) < shortest:
            continue
        size = min(len(secret), FRAGMENT)
        pieces = {secret[start : start + size] for start in range(len(secret) - size + 1)}
        for start in range(len(letters) - size + 1):
            if letters[start : start + size] in pieces:
                hidden[start : start + size] = [True] * size
    parts, shown_until = [], 0
    for index, (start, end) in enumerate(spans):
        if hidden[index]:
            if not (index and hidden[index - 1]):
                parts += [text[shown_until:start], MARK]
            shown_until = end
    return "".join([*parts, text[shown_until:]])


def _spellings(secrets: Sequence[str]) -> set[str]:
    """Secrets as they may read when decoded: without blanks, which a text may lose or add."""
    plain = {"".join(secret.split()) for secret in secrets}
    return (
        plain | {_decoded(secret)[0] for secret in secrets} | {"+".join(s.split()) for s in secrets}
    )


def _decoded(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The letters of a text without blanks and line breaks, and where each of them stands."""
    letters, spans = [], []
    for match in _LETTER.finditer(text):
        code, escaped, plain = match["code"], match["escaped"], match["plain"]
        letter = chr(int(code, 16)) if code else escaped or plain or ""
        if letter and not letter.isspace():
            letters.append(letter)
            spans.append(match.span())
    return "".join(letters), spans


@dataclass(frozen=True)
class _SecretsTakenOut:
    """A filter of loggers: no message and no traceback in it holds a secret."""

    secrets: tuple[str, ...] = field(repr=False)

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = without_secrets(record.getMessage(), self.secrets), None
        if record.exc_info:
            trace = record.exc_text or logging.Formatter().formatException(record.exc_info)
            record.exc_text, record.exc_info = trace, None
        if record.exc_text:  # also where another judge's filter came first
            record.exc_text = without_secrets(record.exc_text, self.secrets)
        return True


def guard_loggers(secrets: tuple[str, ...]) -> None:
    """Keep secrets out of what the judge's client logs; call it when the client is made."""
    names = {*CLIENT_LOGGERS, *logging.root.manager.loggerDict}
    for name in sorted(names):
        if name.partition(".")[0] in CLIENT_LOGGERS:
            logging.getLogger(name).addFilter(_SecretsTakenOut(secrets))
