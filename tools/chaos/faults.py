"""The faults: what is done to a run of the flow, and what is mended before the restart."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from flows.runner.guard import stop
from flows.runner.recording import answers
from flows.server.server import LOOPBACK, free_port
from tools.chaos.cases import Blow
from tools.chaos.flow import LONGEST, Flow
from tools.chaos.workspace import environment

DISKS = ("artifacts", ".work", ".dvc", "")
"""Folders of the workspace that become a file system of their own; "" for all of it."""
ROOMY = "size=2g"


class Server:
    """A server of MLflow or Prefect that is configured, and not the flow's own.

    Args:
        kind: "mlflow" or "prefect".
        folder: the workspace, whose MLflow database it serves.
        home: where Prefect's server keeps its records, and both print.
    """

    def __init__(self, kind: str, folder: Path, home: Path) -> None:
        self.kind, self.folder, self.home, self.port = kind, folder, home, free_port()
        self.log = home / f"{kind}.log"
        home.mkdir(exist_ok=True)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def variables(self) -> dict[str, str]:
        """Those that lead the flow to it."""
        url = f"http://{LOOPBACK}:{self.port}"
        if self.kind == "mlflow":
            return {"MLFLOW_TRACKING_URI": url}
        return {"PREFECT_API_URL": f"{url}/api"}

    def start(self) -> None:
        """Start it, and wait until it answers."""
        prefect = ["prefect", "server", "start"]
        database = f"sqlite:///{self.folder / 'mlflow.db'}"
        mlflow = ["mlflow", "server", "--workers", "1", "--backend-store-uri", database]
        mlflow += ["--default-artifact-root", str(self.folder / "mlruns")]
        words = mlflow if self.kind == "mlflow" else prefect
        more = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PREFECT_HOME": str(self.home)}
        with open(self.log, "a", encoding="utf-8") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *words, "--host", LOOPBACK, "--port", str(self.port)],
                cwd=self.home,
                env=environment(self.folder, more),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        path = "" if self.kind == "mlflow" else "/api"
        end = time.monotonic() + LONGEST
        while self.process.poll() is None and time.monotonic() < end:
            if answers(f"http://{LOOPBACK}:{self.port}{path}", seconds=60):
                return
            time.sleep(0.2)
        self.kill()
        raise RuntimeError(f"{self.kind}'s server does not start; see {self.log}")

    def kill(self) -> None:
        """Kill its process group."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def end(self) -> None:
        """End it as a user does."""
        if self.process is not None:
            stop(self.process)
            self.process = None


class Disk:
    """A folder of the workspace as a file system in memory, which takes a few bytes more.

    Args:
        aside: where its content is meanwhile, and no DVC finds it.
        part: in [0, 1]: decides how many bytes more.
    """

    def __init__(self, folder: Path, aside: Path, part: float) -> None:
        self.folder, self.aside, self.part = folder, aside, part

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Put the folder's content there for the time of the block, and back at its end."""
        subprocess.run(["rm", "-rf", str(self.aside)], check=True)
        self.folder.rename(self.aside)
        self.folder.mkdir()
        try:
            _mount("-t", "tmpfs", "-o", ROOMY, "chaos", str(self.folder))
            try:
                subprocess.run(["cp", "-a", f"{self.aside}/.", str(self.folder)], check=True)
                yield
                subprocess.run(["rm", "-rf", str(self.aside)], check=True)
                subprocess.run(["cp", "-a", str(self.folder), str(self.aside)], check=True)
            finally:
                subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
        finally:
            self.folder.rmdir()
            self.aside.rename(self.folder)

    def fill(self) -> str:
        """Leave room for 0 to 64 KiB, above what there is."""
        room = os.statvfs(self.folder)
        used = (room.f_blocks - room.f_bfree) * room.f_frsize
        more = int(self.part * 65536)
        _mount("-o", f"remount,size={used + more}", str(self.folder))
        return f"{more} bytes left"

    def forbid(self) -> str:
        """Let nothing be written."""
        _mount("-o", "remount,ro", str(self.folder))
        return "read-only"

    def mend(self) -> None:
        """Make room, and let be written."""
        _mount("-o", f"remount,rw,{ROOMY}", str(self.folder))


def _mount(*words: str) -> None:
    for _ in range(50):  # a file that is being written keeps a disk from becoming read-only
        done = subprocess.run(["mount", *words], capture_output=True, text=True)
        if done.returncode == 0:
            return
        time.sleep(0.02)
    raise PermissionError(done.stderr.strip())


class Faults(ExitStack):
    """The faults of a case: `strike` a run, `mend` what that broke; servers end with the block.

    Args:
        name: one of `cases.OTHERS`; empty for kills.
        number: of the case; decides which folder is a file system.
        folder: the workspace.
        prefect: the shared server of Prefect, which runs; None where the flow has its own.

    Attributes:
        variables: of all runs of the case.
    """

    def __init__(
        self, name: str, part: float, number: int, folder: Path, prefect: Server | None
    ) -> None:
        super().__init__()
        self.variables: dict[str, str] = {} if prefect is None else dict(prefect.variables)
        self._server: Server | None = prefect if name == "prefect_server" else None
        self._disk: Disk | None = None
        if name == "mlflow_server":
            self._server = Server("mlflow", folder, folder.with_name("mlflow-server"))
            self._server.start()
            self.callback(self._server.end)
            self.variables |= self._server.variables
        if name in ("small_disk", "read_only"):
            disk = DISKS[number // 3 % len(DISKS)]
            self._disk = Disk(folder / disk, folder.with_name("aside"), part)
            self.enter_context(self._disk.mounted())

    def strike(self, flow: Flow, blow: Blow) -> str | None:
        """Do it: what was done, in words; None if the process was not there any more."""
        fault = blow.fault
        if fault == "wiped":
            return self._signal(flow, "flow", signal.SIGKILL)
        if fault == "term":
            return self._signal(flow, "flow", signal.SIGTERM)
        if fault == "freeze_server":
            return self._signal(flow, "server", signal.SIGSTOP)
        if fault == "file_limit":
            return self._limit(flow, blow.part)
        if self._server is not None:
            self._server.kill()
            return f"SIGKILL to {self._server.kind}'s server"
        if self._disk is not None:
            done = self._disk.fill() if fault == "small_disk" else self._disk.forbid()
            return f"{self._disk.folder.name} is a file system: {done}"
        return self._signal(flow, fault, signal.SIGKILL)

    def _signal(self, flow: Flow, name: str, number: signal.Signals) -> str | None:
        if name == "group":
            os.killpg(flow.process.pid, number)
            return f"{number.name} to the flow's group"
        # the process of a stage begins when the packages are imported
        flow.until(lambda: name in flow.processes(), 120)
        process = flow.processes().get(name)
        if process is None:
            return None
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            return None
        return f"{number.name} to the {name}"

    def _limit(self, flow: Flow, part: float) -> str | None:
        """Limit the files of the stages' processes."""
        largest = int(1024 * 2 ** (10 * part))
        flow.until(lambda: "host" in flow.processes(), 10)
        found = flow.processes()
        for name in ("host", "dvc", "stage"):
            if name in found:
                try:
                    resource.prlimit(found[name].pid, resource.RLIMIT_FSIZE, (largest, largest))
                except ProcessLookupError:
                    continue
        return f"no file above {largest} bytes" if "host" in found else None

    def mend(self) -> None:
        """Make room, start servers again."""
        if self._disk is not None:
            self._disk.mend()
        if self._server is not None:
            self._server.start()


def unmount(folder: Path) -> None:
    """Take away file systems that a killed run of this program left in a workspace."""
    for name in DISKS:
        subprocess.run(["umount", "--lazy", str(folder / name)], capture_output=True)
