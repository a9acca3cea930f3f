"""A limit of time on all of a request: a client's own timeout begins again with every byte."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

LARGEST = 4 * 2**20
"""Bytes of a reply."""


def within(seconds: float, work: Callable[[], T]) -> T:
    """The result of work in a thread; one that is late is left alone and ends with the process.

    Raises:
        TimeoutError: it took longer.
        Exception: what the work raises.
    """
    results: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            results.put((work(), None))
        except BaseException as error:
            results.put((None, error))

    threading.Thread(target=run, daemon=True, name="judge").start()
    try:
        result, error = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def joined(parts: Iterable[bytes]) -> str:
    """The text of a reply that arrives in parts.

    Raises:
        ValueError: it is longer than any reply.
    """
    body = bytearray()
    for part in parts:
        body += part
        if len(body) > LARGEST:
            raise ValueError(f"a reply of more than {LARGEST:,} bytes")
    return body.decode(errors="replace")
