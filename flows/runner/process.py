"""One stage as a process: its printed lines and its progress events, as they come."""

from __future__ import annotations

import json
import os
import queue
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from efficientllava.errors import disk_error
from efficientllava.progress import Event
from flows.runner.graph import Node
from flows.runner.guard import stop
from flows.runner.host import Reproduction, StageHost
from flows.runner.loopback import environment_of_stages

# messages of `dvc repro` for a terminal; the flow has its own
_NOISE = re.compile(
    r"^(Use `dvc push`|To track the changes with git|To enable auto staging"
    r"|\s*(git|dvc) (add|config) |Data and pipelines are up to date"
    r"|(Updating|Generating) lock file|Running stage |Having any troubles\?)"
)
_FAILED = "ERROR: failed to reproduce"
_UNEXPECTED = "ERROR: unexpected error - "
_EXIT = re.compile(r"exited with (-?\d+)\s*$")
POLL_SECONDS = 0.1


@dataclass
class StageProcess:
    """A running `dvc repro --single-item`.

    Attributes:
        lines: printed by the stage so far, without DVC's own lines.
        ran: False when DVC took the outputs from its run cache.
        status: exit status of the stage's command (not of DVC); None while it runs.
    """

    stage: str
    process: Reproduction
    events: Path
    lines: list[str] = field(default_factory=list)
    ran: bool = False
    status: int | None = None

    def messages(self) -> Iterator[str | Event]:
        """Printed lines and events, in order of arrival, until the process has ended."""
        printed: queue.SimpleQueue[str] = queue.SimpleQueue()
        reader = threading.Thread(target=self._read, args=(printed,), daemon=True)
        reader.start()
        with open(self.events, "rb") as file:
            ended = False
            while not ended:
                ended = self.process.poll() is not None and not reader.is_alive()
                yield from self._events(file)
                try:
                    line: str | None = printed.get(timeout=0 if ended else POLL_SECONDS)
                except queue.Empty:
                    continue
                while line is not None:
                    if self._keep(line):
                        yield line
                    line = None if printed.empty() else printed.get()
        self.status = self._status()

    def _read(self, printed: queue.SimpleQueue[str]) -> None:
        for line in self.process.stdout:
            printed.put(line.rstrip())

    def _events(self, file: BinaryIO) -> Iterator[Event]:
        while line := file.readline():
            if not line.endswith(b"\n"):  # the writer is in the middle of it
                file.seek(-len(line), os.SEEK_CUR)
                return
            values = json.loads(line)
            yield Event(values["name"], values["done"], values["total"], values["values"])

    def _keep(self, line: str) -> bool:
        self.ran = self.ran or line.startswith("Running stage ")
        if line.startswith(_FAILED):
            match = _EXIT.search(line)
            # without a command's exit status it is DVC that refuses: wrong parameters or files
            self.status = int(match.group(1)) if match else 2
            if match:
                return False
        if line.startswith(_UNEXPECTED) and disk_error(RuntimeError(line)) is not None:
            self.status = 2
        if not line.strip() or _NOISE.match(line):
            return False
        self.lines.append(line)
        return True

    def _status(self) -> int:
        code = self.process.wait()
        return self.status if code and self.status else code

    @property
    def message(self) -> str:
        """The stage's last message, with its remedy."""
        said = [line for line in self.lines if not line.startswith("> ")]
        if not said:
            return "it printed nothing"
        start = len(said) - 1
        while start > 0 and said[start].startswith("  -> "):
            start -= 1
        return "\n".join(said[start:])


@contextmanager
def reproduce(
    host: StageHost, root: Path, node: Node, environment: Mapping[str, str]
) -> Iterator[StageProcess]:
    """Start `dvc repro --single-item STAGE`; leaving the block early kills its process group.

    Args:
        host: of whose process it is a fork.
        root: the workspace.
        environment: variables for the stage's command, on top of this process' own.
    """
    events = root / ".work" / "events" / f"{node.name.replace('/', '-')}.jsonl"
    events.parent.mkdir(parents=True, exist_ok=True)
    events.write_text("")
    env = {
        **environment_of_stages(),
        # a command that says `python` and no module of ours: let it be this one
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONUNBUFFERED": "1",
        **environment,
        "EFFICIENTLLAVA_EVENTS": str(events),
    }
    process = host.reproduce(root, node.name, env, node.works_with_models)
    try:
        yield StageProcess(node.name, process, events)
    finally:
        stop(process)
        process.close()
