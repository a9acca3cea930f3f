"""Servers on this machine are asked directly, whatever proxy the environment names."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from efficientllava.errors import UserError
from efficientllava.loopback import reach_loopback
from flows.runner.loopback import environment_of_stages, on_loopback, past_proxies, request
from flows.tracking.tracking import check_server

NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


@pytest.fixture
def server() -> Iterator[str]:
    class Fine(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"true")

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Fine) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_address[1]}"
        made.shutdown()


@pytest.fixture(params=["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
def proxies(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Set every proxy variable to a proxy that does not exist; no address is excepted."""
    for name in NAMES:
        monkeypatch.setenv(name, request.param)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    return request.param


def test_requests_go_past_proxies(server: str, proxies: str) -> None:
    assert request("GET", f"{server}/health").text == "true"
    check_server(server)
    with pytest.raises(UserError, match="does not answer"):
        check_server("http://mlflow.invalid")


def test_clients_of_libraries_go_past_proxies(server: str, proxies: str) -> None:
    before = dict(os.environ)
    with past_proxies():
        with httpx.Client() as client:  # as Prefect's
            assert client.get(f"{server}/health").text == "true"
        assert environment_of_stages()["ALL_PROXY"] == proxies
    assert {name: os.environ[name] for name in NAMES} == {name: before[name] for name in NAMES}


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://localhost:5000", True),
        ("http://127.0.0.53/api", True),
        ("https://[::1]:4200/api", True),
        ("http://10.0.0.1:5000", False),
        ("http://localhost.example.org", False),
        ("sqlite:///mlflow.db", False),
        ("http://[broken", False),
    ],
)
def test_what_is_on_this_machine(url: str, local: bool) -> None:
    assert on_loopback(url) is local


def test_exceptions_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    reach_loopback()
    assert "NO_PROXY" not in os.environ  # without a proxy there is nothing to except
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "example.org, localhost")
    reach_loopback()
    assert os.environ["NO_PROXY"] == "example.org,localhost,127.0.0.1,::1"
    assert "no_proxy" not in os.environ
    monkeypatch.setenv("no_proxy", "")  # Python takes it instead of the other
    reach_loopback()
    assert os.environ["no_proxy"] == "localhost,127.0.0.1,::1"
    monkeypatch.setenv("NO_PROXY", "*")
    reach_loopback()
    assert os.environ["NO_PROXY"] == "*"
