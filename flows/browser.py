"""A headless Chromium, driven through chromedriver's own HTTP interface (W3C WebDriver)."""

from __future__ import annotations

import base64
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from efficientllava.errors import UserError
from flows.runner.loopback import request
from flows.server.server import LOOPBACK, free_port

# no window, no network of its own, no first-run pages
OPTIONS = """--headless=new --no-sandbox --disable-gpu --no-first-run
--disable-background-networking
--disable-component-update --disable-default-apps --disable-sync --disable-extensions
--metrics-recording-only --disable-dev-shm-usage --hide-scrollbars --force-device-scale-factor=1"""

PATIENCE = 300  # seconds that one answer of the browser may take


class Page:
    """One browser tab."""

    def __init__(self, address: str, session: str) -> None:
        self._address = f"{address}/session/{session}"

    def _call(self, path: str, **values: Any) -> Any:
        answer = request("POST", f"{self._address}/{path}", json=values, timeout=PATIENCE)
        answer.raise_for_status()
        return answer.json()["value"]

    def open(self, url: str) -> None:
        """Go to an address."""
        self._call("url", url=url)

    def script(self, code: str, *arguments: Any) -> Any:
        """Run JavaScript in the page and give its value back."""
        return self._call("execute/sync", script=code, args=list(arguments))

    def wait_for(self, *words: str, seconds: float = PATIENCE) -> None:
        """Wait until the page shows all of the words.

        Raises:
            UserError: it did not in time.
        """
        end = time.monotonic() + seconds
        shown = ""
        while time.monotonic() < end:
            shown = self.script("return document.body ? document.body.innerText : ''")
            if all(word in shown for word in words):
                return
            time.sleep(0.5)
        missing = [word for word in words if word not in shown]
        url = self.script("return location.href")
        raise UserError(f"does not show {missing} but: {shown[:500]!r}", where=url)

    def save(self, path: Path) -> None:
        """Write what the window shows as PNG."""
        answer = request("GET", f"{self._address}/screenshot", timeout=PATIENCE)
        answer.raise_for_status()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(answer.json()["value"]))


@contextmanager
def browser(width: int = 1800, height: int = 1300) -> Iterator[Page]:
    """Start Chromium and yield its tab.

    Raises:
        UserError: chromium or chromedriver is not installed.
    """
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        raise UserError(
            "chromium and chromedriver are not installed",
            where="screenshots",
            remedy="apt-get install chromium chromium-driver",
        )
    port = free_port()
    address = f"http://{LOOPBACK}:{port}"
    with tempfile.TemporaryDirectory() as profile:
        process = subprocess.Popen(
            [driver, f"--port={port}", "--silent"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        session = ""
        try:
            wait_for_server(f"{address}/status")
            options = [*OPTIONS.split(), f"--user-data-dir={profile}"]
            options.append(f"--window-size={width},{height}")
            answer = request(
                "POST",
                f"{address}/session",
                json={
                    "capabilities": {
                        "alwaysMatch": {
                            "browserName": "chrome",
                            "goog:chromeOptions": {"binary": chromium, "args": options},
                        }
                    }
                },
                timeout=PATIENCE,
            )
            answer.raise_for_status()
            session = answer.json()["value"]["sessionId"]
            yield Page(address, session)
        finally:
            if session:
                request("DELETE", f"{address}/session/{session}", timeout=30)
            process.terminate()
            process.wait(10)


def wait_for_server(url: str, seconds: float = 180.0) -> None:
    """Wait until a server answers.

    Raises:
        UserError: it did not in time.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if request("GET", url, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.3)
    raise UserError(f"no answer within {seconds:g} s", where=url)
