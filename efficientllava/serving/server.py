"""The server's process: a socket, uvicorn on it, and a clean end."""

from __future__ import annotations

import errno
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import uvicorn

from efficientllava.errors import UserError
from efficientllava.models.checkpoint import check_checkpoint
from efficientllava.offload.devices import require_device
from efficientllava.serving.application import application
from efficientllava.serving.engine import Engine

HOSTS = "take 127.0.0.1, an address of this machine, or 0.0.0.0 for all of them"
LOOPBACK = ["localhost", "127.0.0.1", "[::1]", "::1"]


@dataclass(frozen=True)
class Settings:
    """How a checkpoint is served.

    Attributes:
        name: the model's, in requests.
        host, port: where; port 0 takes a free one.
        waiting: requests that may wait while one is answered.
        new_tokens: the longest answer where a request does not say.
        most_bytes: of a request.
        grace: seconds that answers have to end after SIGTERM.
        key: what requests need as API key; None: they need none.
    """

    name: str
    host: str
    port: int
    device: str
    threads: int
    waiting: int
    new_tokens: int
    most_bytes: int
    grace: int
    key: str | None


def serve_checkpoint(folder: Path, settings: Settings, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; running and waiting requests are answered within the grace.

    The server listens while the checkpoint is loaded: /ready then says that it is not ready.

    Args:
        say: prints a line for the user.

    Raises:
        UserError: the checkpoint or the device cannot be used, or the port is taken.
    """
    check_checkpoint(folder)
    require_device(settings.device, "--device")
    with _listening(settings.host, settings.port) as listener:
        address = _address(listener)
        ended: list[uvicorn.Server] = []
        engine = Engine(
            folder,
            settings.device,
            settings.threads,
            settings.waiting,
            settings.new_tokens,
            lambda: setattr(ended[0], "should_exit", True),
        )
        app = application(
            engine,
            settings.name,
            LOOPBACK if _is_loopback(listener.getsockname()[0]) else ["*"],
            settings.most_bytes,
            settings.key,
            lambda: say(f"{settings.name} is ready at {address}"),
        )
        config = uvicorn.Config(
            app, log_level="warning", timeout_graceful_shutdown=settings.grace, lifespan="on"
        )
        server = uvicorn.Server(config)
        ended.append(server)
        # uvicorn raises the signal that ended it once more: an end on request is no failure
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        server.run(sockets=[listener])
    if engine.failure is not None:
        raise engine.failure
    say("ended")


def require_access(host: str, port: int, variable: str) -> None:
    """Check that a server without a key listens on this machine alone.

    Raises:
        UserError: other machines could reach it, or the host is unknown.
    """
    if not _is_loopback(_resolved(host, port)[-1][0]):
        raise UserError(
            "whoever reaches this address could use the model: no API key is set",
            where=f"--host {host}",
            remedy=f"set {variable}, or give --insecure in a network that you trust",
        )


def _resolved(host: str, port: int) -> tuple[int, int, int, Any]:
    """Family, kind, protocol and address of a host of this machine.

    Raises:
        UserError: the host is unknown.
    """
    if not host.strip():  # it would stand for every address
        raise UserError("is empty", where="--host", remedy=HOSTS)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"no such address ({error.strerror if isinstance(error, OSError) else error})",
            where=f"--host {host}",
            remedy=HOSTS,
        ) from error
    return family, kind, protocol, address


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: the host is not of this machine, or the port is taken or not ours to take.
    """
    family, kind, protocol, address = _resolved(host, port)
    try:
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
        except BaseException:
            listener.close()
            raise
    except (OSError, OverflowError) as error:
        raise UserError(
            f"cannot listen there ({error})",
            where=f"--host {host} --port {port}",
            remedy=HOSTS
            if getattr(error, "errno", None) == errno.EADDRNOTAVAIL
            else "take another port; --port 0 takes a free one",
        ) from error
    return listener


def _address(listener: socket.socket) -> str:
    """Where clients find the server; for all addresses of this machine, the one it is known by."""
    host, port = listener.getsockname()[:2]
    if (every := ip_address(host.partition("%")[0])).is_unspecified:
        with socket.socket(listener.family, socket.SOCK_DGRAM) as towards:
            try:  # an address of documentation: nothing is sent, the route alone is looked up
                towards.connect(("192.0.2.1" if every.version == 4 else "2001:db8::1", 9))
                host = towards.getsockname()[0]
            except OSError:
                host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def _is_loopback(host: str) -> bool:
    return ip_address(host.partition("%")[0]).is_loopback
