"""The server's process: a socket, uvicorn on it, and a clean end."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import uvicorn

from efficientllava.errors import UserError, renaming
from efficientllava.models.checkpoint import check_checkpoint
from efficientllava.offload.devices import require_device
from efficientllava.parsing import parse_parameters
from efficientllava.serving.application import application
from efficientllava.serving.engine import Engine

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
    with renaming({"params.yaml, machine.device": "--device"}):
        parse_parameters({"machine": {"device": settings.device}}, "--device")
        require_device(settings.device)
    with _listening(settings.host, settings.port) as listener:
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
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
            LOOPBACK if _is_loopback(host) else ["*"],
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


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: the host is unknown, or the port is taken or not ours to take.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
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
            remedy="take another port; --port 0 takes a free one",
        ) from error
    return listener


def _is_loopback(host: str) -> bool:
    return ip_address(host.partition("%")[0]).is_loopback
