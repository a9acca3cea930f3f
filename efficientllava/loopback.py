"""Servers on this machine are reached past every proxy, by any library."""

from __future__ import annotations

import os

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PROXIES = {"http_proxy", "https_proxy", "all_proxy"}


def reach_loopback() -> None:
    """Let no proxy stand between this machine and its own servers.

    Adds the loopback names to NO_PROXY where a proxy variable is set; what stands there stays. One
    that is set and empty counts too: it takes the place of its sister in other letters.
    """
    if not any(name.lower() in PROXIES for name in os.environ):
        return
    names = [name for name in ("NO_PROXY", "no_proxy") if name in os.environ]
    for name in names or ["NO_PROXY", "no_proxy"]:
        known = [host.strip() for host in os.environ.get(name, "").split(",") if host.strip()]
        if "*" not in known:
            missing = [host for host in LOOPBACK if host not in known]
            os.environ[name] = ",".join([*known, *missing])
