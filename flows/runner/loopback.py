"""Requests that may go to a server on this machine: no proxy stands between.

`efficientllava.loopback` sets NO_PROXY for libraries; these functions do not depend on it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx

from efficientllava.loopback import PROXIES, reach_loopback

_set_aside: dict[str, str] = {}


def on_loopback(url: str) -> bool:
    """Whether the address names this machine by its loopback interface."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a name, or no address at all
        return False


def request(method: str, url: str, **options: Any) -> httpx.Response:
    """An HTTP request, past every proxy when the server is on this machine.

    Args:
        options: as httpx.request takes them.

    Raises:
        httpx.HTTPError, httpx.InvalidURL: as httpx.request.
    """
    return httpx.request(method, url, trust_env=not on_loopback(url), **options)


@contextmanager
def past_proxies() -> Iterator[None]:
    """Let the clients of this process, Prefect's among them, reach servers on this machine.

    httpx refuses to make any client while a proxy variable names a SOCKS proxy and `socksio` is
    not installed: such variables are set aside for the time of the block; stages see them.
    """
    reach_loopback()
    names = [] if find_spec("socksio") else [name for name in os.environ if _names_socks(name)]
    for name in names:
        _set_aside[name] = os.environ.pop(name)
    try:
        yield
    finally:
        for name in names:
            os.environ[name] = _set_aside.pop(name)


def _names_socks(name: str) -> bool:
    return name.lower() in PROXIES and os.environ[name].lower().startswith("socks")


def environment_of_stages() -> Mapping[str, str]:
    """This process' environment without the changes of `past_proxies`."""
    return {**os.environ, **_set_aside}
