"""A real HTTP server in a thread that speaks like a judge: well, slowly, wrongly or not at all."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Act = Callable[[dict[str, Any]], "str | tuple[int, str] | float | bytes"]
"""What to do with a request: content of a reply, (status, body), seconds to stall, or bytes of
the whole answer, of which one is sent every tenth of a second."""


@dataclass
class Served:
    """Where the server is, and what it was asked."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


@contextmanager
def judge_server(act: Act) -> Iterator[Served]:
    """Serve chat completions on a free port while the block runs."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                served.requests.append(body)
                served.keys.append(self.headers["Authorization"])
                action = act(body)
            if isinstance(action, float):
                time.sleep(action)
                self.close_connection = True
                return
            if isinstance(action, bytes):
                self._drip(action)
                return
            if isinstance(action, str):
                message = {"role": "assistant", "content": action}
                reply = {
                    "id": "x",
                    "model": "judge-0613",
                    "choices": [{"index": 0, "message": message}],
                }
                action = (200, json.dumps(reply))
            status, text = action
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def _drip(self, answer: bytes) -> None:
            try:
                for byte in answer:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(0.1)
            except OSError:
                pass  # who asked has gone

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served = Served(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
