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
from typing import TextIO

from efficientllava.progress import Event, Progress, silent
from efficientllava.terminal import shown

EVENTS = "EFFICIENTLLAVA_EVENTS"
SHOWN = "EFFICIENTLLAVA_SHOWN"  # whoever follows the events shows them: print none here


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
        show = silent if os.environ.get(SHOWN) else stack.enter_context(shown(label, stream))
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
