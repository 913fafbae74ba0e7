"""Calls to a server: what is tried again, what is not, how long it may take, and what the message says."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from rollout_fakes import http_server

from posttrain.rollout.base import EngineLost, EngineRefused
from posttrain.rollout.vllm.client import Server


def scripted(*answers: tuple[int, bytes]):
    """Answers in turn, the last for ever; `.seen` counts the requests."""
    seen: list[Any] = []

    def answer(method: str, path: str, body: Any, headers: Any) -> tuple[int, bytes]:
        seen.append((method, path, body, headers.get("Authorization")))
        return answers[min(len(seen), len(answers)) - 1]

    answer.seen = seen  # type: ignore[attr-defined]  # read by the tests
    return answer


def at(url: str, **options: Any) -> tuple[Server, list[float]]:
    pauses: list[float] = []
    return Server(url, **{"timeout_s": 5.0, "sleep": pauses.append, **options}), pauses


def test_an_answer_comes_back_with_the_key_sent() -> None:
    answer = scripted((200, b'{"a": 1}'))
    with http_server(answer) as url:
        server, _ = at(url, api_key="secret")
        assert server.post("/x", {"b": 2}) == {"a": 1}
    assert answer.seen == [("POST", "/x", {"b": 2}, "Bearer secret")]
    assert "secret" not in repr(server)


def test_a_failing_server_is_asked_again_with_growing_pauses() -> None:
    answer = scripted((500, b"boom"), (503, b"busy"), (200, b"[]"))
    with http_server(answer) as url:
        server, pauses = at(url, retry_delay_s=0.5)
        assert server.get("/x") == []
    assert len(answer.seen) == 3
    assert pauses == [0.5, 1.0]


def test_after_the_last_try_the_message_names_server_and_remedy() -> None:
    answer = scripted((500, b"EngineCore died"))
    with http_server(answer) as url:
        server, _ = at(url, retries=2)
        with pytest.raises(EngineLost) as caught:
            server.get("/x")
    assert len(answer.seen) == 3
    for words in (url, "3 tries", "EngineCore died", "launch/serve_vllm.sh", "--resume"):
        assert words in str(caught.value)


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server, pauses = at(f"http://127.0.0.1:{port}", retries=1)
    with pytest.raises(EngineLost, match=rf"127.0.0.1:{port}.*refused.*Is it running"):
        server.get("/health")
    assert len(pauses) == 1
    with pytest.raises(
        EngineLost, match=r"not up after 0 s \(.*refused\). Start it with: launch/serve_vllm.sh"
    ):
        server.wait_until_up(0.0)


def test_a_wait_is_announced_once_and_ends_when_the_server_is_up(capsys: pytest.CaptureFixture) -> None:
    answer = scripted((503, b"loading"), (503, b"loading"), (200, b""))
    with http_server(answer) as url:
        server, pauses = at(url)
        server.wait_until_up(60.0)
    assert pauses == [1.0, 1.0]
    assert capsys.readouterr().err == f"waiting up to 60 s for rollout server {url}\n"
    with http_server(scripted((200, b"<html>"))) as url:
        server, _ = at(url)
        with pytest.raises(EngineLost, match="not up after 0 s .*not JSON: <html>"):
            server.wait_until_up(0.0)


@pytest.mark.parametrize(
    ("status", "text", "message"),
    [
        (401, b"", "wrong API key .*rollout.vllm.api_key_env"),
        (404, b"", "it has no /x.*VLLM_SERVER_DEV_MODE=1"),
        (400, b"maximum context length is 32", "refuses /x .*maximum context length is 32"),
    ],
)
def test_a_refusal_is_not_asked_again(status: int, text: bytes, message: str) -> None:
    answer = scripted((status, text))
    with http_server(answer) as url:
        server, _ = at(url)
        with pytest.raises(EngineRefused, match=message):
            server.get("/x")
    assert len(answer.seen) == 1


def test_garbage_is_a_failed_try() -> None:
    answer = scripted((200, b"<html>login</html>"), (200, b'{"value": -1}'), (200, b'{"value": 3}'))

    def read(found: Any) -> int:
        if found["value"] < 0:
            raise ValueError("a negative value")
        return found["value"]

    with http_server(answer) as url:
        server, _ = at(url)
        assert server.get("/x", read=read) == 3
        server, _ = at(url, retries=0)
    with http_server(scripted((200, b"<html>login</html>"))) as url:
        server, _ = at(url, retries=0)
        with pytest.raises(EngineLost, match="not JSON: <html>login.*Check rollout.vllm.servers"):
            server.get("/x")


def test_out_of_memory_has_its_own_remedy() -> None:
    with http_server(scripted((500, b"torch.OutOfMemoryError: tried to allocate"))) as url:
        server, _ = at(url, retries=0)
        with pytest.raises(EngineLost, match="ran out of memory: restart it with a smaller --max-num-seqs"):
            server.get("/x")


def test_no_call_outlasts_its_limit() -> None:
    tries: list[int] = []

    def slow(*_: Any) -> tuple[int, bytes]:
        tries.append(1)
        time.sleep(1.5)
        return 200, b"{}"

    with http_server(slow) as url:
        server = Server(url, timeout_s=0.3, retries=4, retry_delay_s=0.01)
        with pytest.raises(EngineLost, match="timed out.*rollout.vllm.timeout_s"):
            server.get("/x")
    assert len(tries) == 1  # it had the whole limit, and nothing was left for another


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://a:1", "http://a:1/v1", "http://", "http://a:b"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="write it as http://host:port"):
        Server(url)


# ---- limits


@contextmanager
def raw_server(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that reads a request's head and leaves the rest to `answer`, on one connection after another."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(peer: socket.socket) -> None:
        with peer, suppress(OSError):
            peer.recv(65536)
            answer(peer)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


def drip(peer: socket.socket, text: bytes) -> None:
    for byte in text:
        peer.sendall(bytes([byte]))
        time.sleep(0.05)


SLOW = {
    "status": lambda peer: drip(peer, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
    "body": lambda peer: (
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n"),
        drip(peer, b" " * 200),
    ),
    "chunks": lambda peer: (
        peer.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        drip(peer, b"1\r\n \r\n" * 40),
    ),
    "error": lambda peer: (
        peer.sendall(b"HTTP/1.1 500 No\r\nContent-Length: 200\r\n\r\n"),
        drip(peer, b" " * 200),
    ),
}


@pytest.mark.parametrize("part", SLOW)
def test_a_server_that_sends_byte_by_byte_ends_at_the_limit(part: str) -> None:
    with raw_server(SLOW[part]) as url:
        began = time.monotonic()
        with pytest.raises(EngineLost, match="timed out"):
            Server(url, timeout_s=0.4, retries=4, retry_delay_s=0.01).get("/x")
    assert 0.3 < time.monotonic() - began < 1.5


@pytest.mark.parametrize(
    "head", [b"Content-Length: 5000\r\n\r\n", b"\r\n", b"Transfer-Encoding: chunked\r\n\r\n1388\r\n"]
)
def test_an_answer_has_a_bound(head: bytes) -> None:
    def answer(peer: socket.socket) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\n" + head + b"1" * 5000 + b"\r\n0\r\n\r\n")

    with raw_server(answer) as url:
        server = Server(url, timeout_s=5.0, retries=0, max_bytes=1000)
        with pytest.raises(EngineLost, match="answered more than 1000 bytes"):
            server.get("/x")
    with raw_server(lambda peer: peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n1234")) as url:
        assert Server(url, max_bytes=4).get("/x") == 1234


def test_an_answer_cut_short_is_a_failed_try_even_when_nothing_came() -> None:
    for text in (b"", b"12"):
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
        with (
            raw_server(lambda peer, sent=head + text: peer.sendall(sent)) as url,
            pytest.raises(EngineLost, match="IncompleteRead"),
        ):
            Server(url, timeout_s=5.0, retries=0).get("/x")


def test_a_long_error_is_shown_in_part() -> None:
    with http_server(scripted((500, b"x" * 200_000))) as url, pytest.raises(EngineLost) as caught:
        at(url, retries=0)[0].get("/x")
    assert "x" * 300 in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_redirect_is_refused() -> None:
    with (
        http_server(scripted((307, b"elsewhere"))) as url,
        pytest.raises(EngineRefused, match=r"refuses /x \(HTTP 307\)"),
    ):
        at(url)[0].get("/x")


@pytest.mark.parametrize("status", [408, 425, 429])
def test_a_busy_server_is_asked_again(status: int) -> None:
    with http_server(scripted((status, b"later"), (200, b"1"))) as url:
        assert at(url)[0].get("/x") == 1


def test_a_pause_that_would_outlast_the_limit_is_not_taken() -> None:
    with http_server(scripted((500, b"boom"))) as url:
        server, pauses = at(url, timeout_s=2.0, retry_delay_s=1.5, retries=3)
        with pytest.raises(EngineLost):
            server.get("/x")
    assert pauses == [1.5]  # the second would be of 3 s


def test_the_bound_is_what_it_says() -> None:
    with http_server(scripted((200, b"1" * 1001))) as url:
        with pytest.raises(EngineLost, match="answered more than 1000 bytes"):
            at(url, retries=0, max_bytes=1000)[0].get("/x")
        assert at(url, max_bytes=1001)[0].get("/x") == int("1" * 1001)
