"""An OpenAI-compatible server on loopback whose model is a function of the messages."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Heard:
    """Where the server is, and the requests that reached it."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)

    @property
    def questions(self) -> list[str]:
        return [one["messages"][-1]["content"] for one in self.requests]


@contextmanager
def scripted_judge(says: Callable[[str], str | int]) -> Iterator[Heard]:
    """`says(question)` gives the answer's text, or the status of a failure."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                heard.requests.append(body)
            said = says(body["messages"][-1]["content"])
            status = said if isinstance(said, int) else 200
            reply = {"error": {"message": "no"}} if isinstance(said, int) else completion(said)
            data = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    lock = threading.Lock()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    heard = Heard(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield heard
    finally:
        server.shutdown()
        server.server_close()


def completion(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "x", "object": "chat.completion", "created": 0, "model": "scripted",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
    }  # fmt: skip
