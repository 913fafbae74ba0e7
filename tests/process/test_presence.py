"""What a job's scripts ask of other machines: whether the training is still there, and whether servers answer."""

from __future__ import annotations

import http.server
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from posttrain.process import presence


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = self.path == "/health" and self.headers["Authorization"] == "Bearer secret"
        self.send_response(200 if known else 401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    made = http.server.HTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()


def test_servers_that_answer_are_waited_for(server: str, monkeypatch, capsys) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert presence.main(["healthy", server, server + "/", "--seconds", "5"]) == 0
    nobody = f"http://127.0.0.1:{free_port()}"
    assert presence.main(["healthy", server, nobody, "--seconds", "0"]) == 1
    said = capsys.readouterr().err
    assert said == f"{nobody} did not answer within 0 s; see its log\n"


def test_a_server_that_refuses_the_key_is_not_up(server: str, monkeypatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "another")
    assert presence.healthy([server], seconds=0.0) == [server]


def test_a_watch_begins_when_it_is_there_and_ends_when_it_is_gone(monkeypatch) -> None:
    port, ended, seen = free_port(), [], threading.Event()
    look = presence.is_there

    def looking(host: str, port: int) -> bool:
        found = look(host, port)
        if found and threading.current_thread() is watching:
            seen.set()
        return found

    monkeypatch.setattr(presence, "is_there", looking)
    watching = threading.Thread(
        target=lambda: ended.append(presence.watch("127.0.0.1", port, look_s=0.05)), daemon=True
    )
    watching.start()
    time.sleep(0.2)
    assert not ended  # not there yet is not gone
    holder = subprocess.Popen([sys.executable, "-m", "posttrain.process.presence", "hold", str(port)])
    while not presence.is_there("127.0.0.1", port):
        time.sleep(0.02)
    for _ in range(200):  # more than a queue of connections holds: they are taken
        assert presence.is_there("127.0.0.1", port)
    assert seen.wait(timeout=10)  # what it has not seen there cannot be gone for it
    assert not ended
    holder.kill()
    holder.wait()
    watching.join(timeout=10)
    assert ended == [True]


def test_what_never_comes_is_not_waited_for_for_ever() -> None:
    assert not presence.watch("127.0.0.1", free_port(), look_s=0.05, first_s=0.1)
