"""How long work is shown: a live bar on a terminal, plain lines in a log, and a file to follow."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from efficientllava.progress import Event, Progress, silent

if TYPE_CHECKING:
    from rich.console import Console

EVENTS = "EFFICIENTLLAVA_EVENTS"
SHOWN = "EFFICIENTLLAVA_SHOWN"  # whoever follows the events shows them: print none here
SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def reporter(label: str, stream: TextIO | None = None) -> Iterator[Progress]:
    """Yield the progress callback of a stage; it may be called from several threads.

    Args:
        label: the stage, as it is shown.
        stream: where to show it; standard output when not given.
    """
    stream = stream or sys.stdout
    lock = threading.Lock()
    with ExitStack() as stack:
        show: Progress = Lines(label, stream)
        if os.environ.get(SHOWN):
            show = silent
        elif stream.isatty():
            from rich.console import Console

            show = stack.enter_context(bar(label, Console(file=stream)))
        record: Progress | None = None
        if path := os.environ.get(EVENTS):
            record = Record(stack.enter_context(open(Path(path), "a", encoding="utf-8")))

        def tell(event: Event) -> None:
            with lock:
                show(event)
                if record is not None:
                    record(event)

        yield tell


class Record:
    """One JSON line per event, flushed: for the flow to follow."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def __call__(self, event: Event) -> None:
        """Append the event."""
        row = {
            "name": event.name,
            "done": event.done,
            "total": event.total,
            "values": event.values,
            "time": time.time(),
        }
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()


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
        told = [f"{self.label}: {event.name} {event.done}/{event.total}", describe(event)]
        print("  ".join(part for part in told if part), file=self.stream, flush=True)


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

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[told]}"),
    )
    with Bars(*columns, console=console, transient=False) as bars:
        known: dict[str, Any] = {}

        def show(event: Event) -> None:
            if event.name == "round_started":
                return
            if event.name not in known:
                known[event.name] = bars.add_task(f"{label}: {event.name}", told="")
            bars.update(
                known[event.name],
                completed=event.done,
                total=event.total,
                told=describe(event),
            )

        yield show
