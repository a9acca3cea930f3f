"""The display of long work: a live bar, or plain lines in a log."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from efficientllava.progress import Event, Progress

if TYPE_CHECKING:
    from rich.console import Console

SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def shown(label: str, stream: TextIO) -> Iterator[Progress]:
    """Yield a callback that draws live bars where `stream` is a terminal, and lines elsewhere."""
    if not stream.isatty():
        yield Lines(label, stream)
        return
    from rich.console import Console

    with bar(label, Console(file=stream)) as show:
        yield show


def print_rows(rows: Sequence[tuple[str, str]], stream: TextIO) -> None:
    """Print names and values: a table as wide as the terminal, or in a log one line for each."""
    if not stream.isatty():
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            print(f"{name:<{width}}  {value}", file=stream, flush=True)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(file=stream, highlight=False, markup=False).print(table)


class Lines:
    """A plain line when a kind of work ends, and now and then on the way."""

    def __init__(self, label: str, stream: TextIO) -> None:
        self.label, self.stream = label, stream
        self.last = 0.0

    def __call__(self, event: Event) -> None:
        """Print the event, unless the last line is only just written."""
        now = time.monotonic()
        # rounds are few and say the most
        if event.name != "round" and event.done < event.total:
            if event.name == "round_started" or now - self.last < SECONDS_BETWEEN_LINES:
                return
        elif event.name in ("candidate", "round_started"):
            return
        self.last = now
        line = [f"{self.label}: {event.name} {event.done}/{event.total}", describe(event)]
        print("  ".join(part for part in line if part), file=self.stream, flush=True)


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would use."""
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (float("inf"), 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    raise AssertionError


def describe(event: Event) -> str:
    """Measured values in a few words: `best risk 0.123  4.1 evaluations/s  12 s left`."""
    parts = []
    for name, value in event.values.items():
        if name == event.name:
            continue
        if name == "seconds_left":
            parts.append(f"{value:.0f} s left")
        elif name == "evaluations_per_second":
            parts.append(f"{value:.2f} evaluations/s")
        elif isinstance(value, float):
            parts.append(f"{name.replace('_', ' ')} {value:.4g}")
        else:
            parts.append(f"{name.replace('_', ' ')} {value}")
    return "  ".join(parts)


@contextmanager
def bar(label: str, console: Console | None = None) -> Iterator[Progress]:
    """Yield a callback that draws a live bar per kind of work.

    Args:
        label: the stage, as it is shown.
        console: the rich console to draw on; standard output when not given.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    # in a narrow terminal the measured values are cut first
    kept, cut = Column(no_wrap=True), Column(no_wrap=True, ratio=1, overflow="ellipsis")
    columns = (
        TextColumn("{task.description}", table_column=kept),
        BarColumn(bar_width=12, table_column=kept.copy()),
        MofNCompleteColumn(table_column=kept.copy()),
        TimeElapsedColumn(table_column=kept.copy()),
        TextColumn("{task.fields[detail]}", table_column=cut),
    )
    with Bars(*columns, console=console, transient=False, expand=True) as bars:
        known: dict[str, Any] = {}

        def show(event: Event) -> None:
            if event.name == "round_started":
                return
            if event.name not in known:
                known[event.name] = bars.add_task(f"{label}: {event.name}", detail="")
            bars.update(
                known[event.name],
                completed=event.done,
                total=event.total,
                detail=describe(event),
            )

        yield show


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' bars and warnings off the screen while our code loads or saves a model.

    The messages that matter are raised as errors by whoever loads. Afterwards the user's own
    settings are in force again.
    """
    from transformers.utils import logging

    def without_bar(factory: Callable[..., Any], args: Sequence[Any], settings: Any) -> Any:
        return factory(*args, **{**settings, "disable": True})

    level, hook = logging.get_verbosity(), logging.set_tqdm_hook(without_bar)
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        logging.set_tqdm_hook(hook)
