"""The process of which a run's stages are forks: `python flows/runner/stage_host.py DESCRIPTOR`.

Importing torch and transformers takes 5 s of a processor, longer than many stages work. Here it
is done once a run. Only packages are imported before a fork, never this repository's code: that is
read anew for every stage, from the stage's own workspace, as its dependencies in DVC say.

A request is one JSON message on the socket DESCRIPTOR, with two file descriptors: where the stage
prints, and the reading end of a pipe that closes when the flow ends. The answers are the number of
the process that runs `dvc repro`, and its exit status when it has ended.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import shlex
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

LONGEST_REQUEST = 2**20
DVC = ("dvc.cli", "dvc.commands.repro", "dvc.repo.reproduce", "dvc.stage.run")


def main(channel: socket.socket) -> None:
    """Answer requests until the flow has closed its end."""
    for name in DVC:
        importlib.import_module(name)
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, LONGEST_REQUEST, 2)
        if not message:
            return
        request = json.loads(message)
        for name in request.pop("modules"):
            importlib.import_module(name)
        process = _fork()
        if process == 0:
            channel.close()
            output, starter = descriptors
            _reproduce(output, starter, **request)
        for descriptor in descriptors:
            os.close(descriptor)
        channel.send(str(process).encode())
        channel.send(str(_wait(process)).encode())


def _fork() -> int:
    # threads of BLAS, the only ones here, are stopped and started again by its own fork handlers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        gc.freeze()  # a collection in the fork would copy every page that it looks at
        return os.fork()


def _wait(process: int) -> int:
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return status if status >= 0 else 128 - status


def _reproduce(
    output: int, starter: int, root: str, stage: str, environment: Mapping[str, str]
) -> NoReturn:
    """Be `dvc repro --single-item STAGE`, as the leader of a session and process group."""
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    _enter(root, environment)
    stage_process = _StageProcess(starter)
    threading.Thread(target=_end_with, args=(starter,), daemon=True).start()
    run = importlib.import_module("dvc.stage.run")
    run._run = stage_process.replacing(run._run)  # type: ignore[attr-defined]
    for name in ("_common", "_yaml"):
        importlib.import_module(f"dvc.utils.serialize.{name}")._dump_data = _dump_whole  # type: ignore[attr-defined]
    _leave(lambda: sys.exit(_dvc(["repro", "--single-item", stage])))


def _dvc(arguments: list[str]) -> int:
    from dvc.cli import main as dvc

    return int(dvc(arguments))


def _dump_whole(
    path: str, data: Any, dumper: Callable[..., None], fs: Any = None, **options: Any
) -> None:
    """Write dvc.lock whole or not at all, in place of DVC's function, which writes in place."""
    whole = Path(os.path.realpath(path))
    temporary = whole.with_name(f".{whole.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            dumper(data, file, **options)
        temporary.replace(whole)
    finally:
        temporary.unlink(missing_ok=True)


def _end_with(starter: int) -> None:
    """Kill the process group when whoever holds the writing end of the pipe has ended."""
    os.read(starter, 1)
    os.killpg(0, signal.SIGKILL)


def _enter(folder: str, environment: Mapping[str, str]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)


class _StageProcess:
    """A fork that waits for a stage's command: made before DVC holds locks and has threads."""

    def __init__(self, *unused: int) -> None:
        command, self._command = os.pipe()
        self._process: int | None = _fork()
        if self._process == 0:
            os.close(self._command)
            for descriptor in unused:
                os.close(descriptor)
            with open(command, "rb") as pipe:
                text = pipe.read()
            if not text:  # DVC found the outputs in its cache
                os._exit(0)
            values = json.loads(text)
            _leave(lambda: _run_module(**values))
        os.close(command)

    def replacing(self, plain: Callable[..., None]) -> Callable[..., None]:
        """What runs a command in place of DVC's own function, which starts a shell."""

        def run(executable: str, command: str, **options: Any) -> None:
            words = shlex.split(command)
            module = words[:2] == ["python", "-m"] and shlex.join(words) == command
            if self._process is None or not module:
                plain(executable, command, **options)
                return
            status = self._run(words[2:], options["cwd"], options["env"])
            if status:
                from dvc.stage.exceptions import StageCmdFailedError

                raise StageCmdFailedError(command, status)

        return run

    def _run(self, words: list[str], folder: str, environment: Mapping[str, str]) -> int:
        assert self._process is not None
        process, self._process = self._process, None
        values = {"words": words, "folder": str(folder), "environment": dict(environment)}
        interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as DVC's own function
        try:
            with open(self._command, "wb") as pipe:
                pipe.write(json.dumps(values).encode())
            return _wait(process)
        finally:
            signal.signal(signal.SIGINT, interrupted)


def _run_module(words: list[str], folder: str, environment: Mapping[str, str]) -> None:
    """Be `python -m WORDS` in a folder."""
    _enter(folder, environment)
    sys.path.insert(0, str(Path(folder).resolve()))
    importlib.invalidate_caches()
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def _leave(run: Callable[[], None]) -> NoReturn:
    """Run, and end this process as an interpreter ends: nothing returns into the host."""
    status = 1
    try:
        run()
        status = 0
    except SystemExit as end:
        status = _status_of(end)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _status_of(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1


if __name__ == "__main__":
    del sys.path[0]  # this file's folder
    with contextlib.suppress(ConnectionError):  # the flow was killed, and its stage with it
        main(socket.socket(fileno=int(sys.argv[1])))
