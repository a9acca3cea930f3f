"""Prefect's log on the console: with live bars below it, and every message once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.logging.handlers import PrefectConsoleHandler

from efficientllava.progress import Progress
from efficientllava.terminal import bar


def _handlers() -> Iterator[PrefectConsoleHandler]:
    for handler in logging.getLogger().handlers:  # Prefect configures the root logger
        if isinstance(handler, PrefectConsoleHandler):
            yield handler


@contextmanager
def terminal_bar(label: str) -> Iterator[Progress | None]:
    """Yield a callback that draws a stage's events as live bars, below Prefect's log.

    Yields None where Prefect's log goes to no terminal.
    """
    for handler in _handlers():
        if handler.console.is_terminal:
            with bar(label, handler.console) as show:
                yield show
            return
    yield None


def say_failures_once() -> None:
    """Keep Prefect from repeating a failed stage's message on the console.

    Its server keeps all of it; the state of the failed run names the cause.
    """
    for handler in _handlers():
        if not any(isinstance(known, _Repetitions) for known in handler.filters):
            handler.addFilter(_Repetitions())


class _Repetitions(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """False for Prefect's repetition of a stage's message."""
        said = record.getMessage()
        return not said.startswith(
            ("Task run failed with state", "Finished in state Failed(", "Flow run failed")
        )
