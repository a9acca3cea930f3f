"""Servers: those on this machine are reached past every proxy, by any library."""

from __future__ import annotations

import os

from efficientllava.errors import UserError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
MLFLOW = "start it, or name another by {}: http://HOST:PORT or sqlite:///FILE"
"""The remedy where it cannot be used, by the option that names another."""
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


def require_mlflow(uri: str, option: str = "--uri") -> None:
    """Report at once an address of MLflow that is none, and a server that does not answer.

    Args:
        option: names another MLflow.

    Raises:
        UserError: as it says.
    """
    scheme, _, rest = uri.partition("://")
    if not rest and not scheme.startswith("databricks"):
        raise UserError("is no address of an MLflow", where=uri, remedy=MLFLOW.format(option))
    if scheme not in ("http", "https"):
        return
    import httpx

    reach_loopback()
    try:
        httpx.get(f"{uri.rstrip('/')}/health", timeout=10)
    except ImportError:  # httpx and a SOCKS proxy: MLflow's own client may know the way
        return
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        problem = f"does not answer ({str(error) or type(error).__name__})"
        raise UserError(problem, f"MLflow at {uri}", MLFLOW.format(option)) from error
