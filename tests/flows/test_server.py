"""Prefect's server of our own: its port, its last words, and one that is killed while it starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from efficientllava.errors import UserError
from flows.server import server
from flows.server.server import last_error, listening


def test_a_port_has_one_owner() -> None:
    """Of two servers that start together, the second takes another port."""
    with listening() as first:
        port = first.getsockname()[1]
        with listening(port) as second:
            assert second.getsockname()[1] != port


def test_a_server_s_last_error_is_found() -> None:
    log = (
        "Traceback (most recent call last):\n  File x\nValueError: first\n\nTraceback ...\n"
        "alembic.util.exc.CommandError: Can't locate revision identified by 'abc'\n\n"
        "12:00 | ERROR | uvicorn.error - Application startup failed. Exiting.\n"
    )
    assert last_error(log).startswith("alembic.util.exc.CommandError: Can't locate")
    assert last_error("one\ntwo\n") == "two" and last_error("") == ""


@pytest.mark.parametrize(
    ("ends", "starts"),
    [("os.kill(os.getpid(), 9)", 2), ("sys.exit('KeyError: of a setting')", 1)],
)
def test_a_server_that_is_killed_while_it_starts_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str, starts: int
) -> None:
    started: list[Any] = []
    command = server.guarded

    def guarded(_: Any, *rest: Any, **options: Any) -> subprocess.Popen[str]:
        started.append(command([sys.executable, "-c", f"import os, sys; {ends}"], *rest, **options))
        return started[-1]

    monkeypatch.setattr(server, "guarded", guarded)
    with pytest.raises(UserError, match=r"it ended \(status (137\)|1\): KeyError: of a setting)"):
        server._started_at_last(tmp_path / "server.log")
    assert len(started) == starts
