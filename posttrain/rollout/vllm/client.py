"""One server as the trainer sees it, of rollouts, rewards or a teacher: calls with a key, a time limit and retries, and
errors that name it.

Only the standard library: the trainer's machine needs no vLLM to talk to one. http.client and not urllib: a limit
holds for the whole call, also against a server that sends a byte a second, and no answer is read without end. A
cluster's web proxy is not asked.
"""

from __future__ import annotations

import http.client
import io
import json
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from posttrain.rollout.base import EngineLost, EngineRefused
from posttrain.rollout.engine_options import is_address

START = "start it with: launch/serve_vllm.sh MODEL"
RUN_HEADER = "X-Posttrain-Run"
"""Says which run a request is from; server_guard.py lets one run at a time change a server's weights."""
_NO_ANSWER = (http.client.HTTPException, OSError)
_ERROR_BYTES = 1 << 16  # of a body that is only shown
_PIECE = 1 << 16
_MEMORY = ("out of memory", "OutOfMemory", "KV cache", "ENOMEM", "Cannot allocate memory")


class Failure(Exception):
    """One try that failed in a way worth another."""


@dataclass(frozen=True)
class Role:
    """What a server is for, in the words of its errors.

    name     who does not answer
    start    how it is started
    key, timeout, address  where the recipe has these settings
    lacking  why a route may be missing on it
    kind     whose server it is
    """

    name: str
    start: str
    key: str
    timeout: str
    address: str
    lacking: str
    kind: str = "vLLM"


ROLLOUTS = Role(
    "rollout server",
    START,
    "rollout.vllm.api_key_env",
    "rollout.vllm.timeout_s",
    "rollout.vllm.servers",
    "It is not a vLLM server, or was started without VLLM_SERVER_DEV_MODE=1, which weight updates need",
)


@dataclass(frozen=True)
class Server:
    """One server.

    url            as in the recipe: http://host:port
    api_key        sent as a bearer token; None: the server was started without one
    timeout_s      the longest one call may take, its retries included
    retries        further tries after the first
    retry_delay_s  pause before the first retry; it doubles from try to try
    run            named in each request; None: not said
    max_bytes      the longest answer that is read
    role           what it is for
    """

    url: str
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 900.0
    retries: int = 4
    retry_delay_s: float = 1.0
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)
    run: str | None = None
    max_bytes: int = 1 << 29
    role: Role = field(default=ROLLOUTS, repr=False)

    def __post_init__(self) -> None:
        if not is_address(self.url):
            raise ValueError(f"{self.role.name} {self.url!r}: write it as http://host:port")

    @property
    def host(self) -> str:
        host = urlsplit(self.url).hostname
        if host is None:
            raise ValueError(f"{self.role.name} {self.url!r} has no host")
        return host

    @property
    def port(self) -> int:
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        read: Callable[[Any], Any] | None = None,
        timeout_s: float | None = None,
        retries: int | None = None,
    ) -> Any:
        """What `read` makes of the JSON that the server answers; a ValueError from it counts as a failed try.

        Raises EngineLost when no try succeeded, EngineRefused when the server says no.
        """
        limit = self.timeout_s if timeout_s is None else timeout_s
        tries = 1 + (self.retries if retries is None else retries)
        start = time.monotonic()
        reason = ""
        for attempt in range(tries):
            left = limit - (time.monotonic() - start)
            if left <= 0:
                break
            try:
                answer = self._once(method, path, body, left)
                return answer if read is None else read(answer)
            except Failure as failure:
                reason = str(failure)
            except ValueError as error:
                reason = f"garbage: {error}"
            delay = self.retry_delay_s * 2**attempt
            if attempt + 1 < tries and time.monotonic() - start + delay < limit:
                self.sleep(delay)
        raise EngineLost(self._lost(path, reason, attempt + 1, time.monotonic() - start))

    def _once(self, method: str, path: str, body: Any, timeout_s: float) -> Any:
        status, text = self.exchange(method, path, body, timeout_s)
        if not 200 <= status < 300:
            self._refused(status, text, path)
            raise Failure(f"HTTP {status}: {_excerpt(text)}")
        if not text:
            return None
        try:
            return json.loads(text)
        except ValueError as error:
            raise Failure(f"answered something that is not JSON: {_excerpt(text)}") from error

    def exchange(self, method: str, path: str, body: Any, timeout_s: float) -> tuple[int, bytes]:
        """Status and body of one request, tried once. Failure when none came within `timeout_s`."""
        headers = {"Content-Type": "application/json"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        if self.run is not None:
            headers[RUN_HEADER] = self.run
        secure = urlsplit(self.url).scheme == "https"
        connection_class = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = connection_class(self.host, self.port, timeout=timeout_s)
        end = time.monotonic() + timeout_s
        connection.response_class = within(timeout_s)
        try:
            connection.connect()
            connection.sock.settimeout(max(end - time.monotonic(), 0.001))  # of sending all of the request
            connection.request(method, path, None if body is None else json.dumps(body).encode(), headers)
            with connection.getresponse() as response:
                good = 200 <= response.status < 300
                return response.status, _body(
                    response, self.max_bytes if good else _ERROR_BYTES, cut=not good
                )
        except _NO_ANSWER as error:
            raise Failure(_cause(error, timeout_s)) from error
        finally:
            connection.close()

    def _refused(self, status: int, text: bytes, path: str) -> None:
        """Raises for an answer that another try would not change."""
        if status in (401, 403):
            raise EngineRefused(
                f"{self.role.name} {self.url}: wrong API key (HTTP {status}). The trainer sends the value of the "
                f"environment variable named by {self.role.key}; give it the key that the server was "
                "started with."
            )
        if status == 404:
            raise EngineRefused(
                f"{self.role.name} {self.url}: it has no {path}. {self.role.lacking}; {self.role.start}"
            )
        if 300 <= status < 500 and status not in (408, 425, 429):
            raise EngineRefused(
                f"{self.role.name} {self.url}: it refuses {path} (HTTP {status}): {_excerpt(text)}"
            )

    def _lost(self, path: str, reason: str, tries: int, seconds: float) -> str:
        """The message when all tries failed: which server, what was seen, what to do."""
        who = f"{self.role.name} {self.url}"
        often = "1 try" if tries == 1 else f"{tries} tries"
        text = f"{who}: no usable answer to {path} in {often} and {seconds:.0f} s ({reason})."
        if any(word in reason for word in _MEMORY):
            return (
                f"{text} It ran out of memory: restart it with a smaller --max-num-seqs, --max-model-len or "
                "--gpu-memory-utilization, or a model that fits; then resume with --resume."
            )
        if "refused" in reason or "reset" in reason or "closed" in reason or "HTTP 5" in reason:
            return f"{text} Is it running? Look at its log, {self.role.start}; then resume with --resume."
        if "timed out" in reason:
            return (
                f"{text} It is busy or hangs: look at its log; raise {self.role.timeout} if one answer may take "
                "longer, or restart it; then resume with --resume."
            )
        if "NaN" in reason:
            return f"{text} Check the last losses and gradients; resume from an earlier checkpoint."
        return f"{text} Is this the address of a {self.role.kind} server? Check {self.role.address}, {self.role.start}."

    def get(self, path: str, **options: Any) -> Any:
        return self.call("GET", path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> Any:
        return self.call("POST", path, body if body is not None else {}, **options)

    def wait_until_up(self, patience_s: float) -> None:
        """Returns when /health answers. Raises EngineLost after `patience_s` of asking once a second; says on stderr
        that it waits, for a silent wait looks like a hang."""
        start = time.monotonic()
        said = False
        while True:
            try:
                self._once("GET", "/health", None, 5.0)
                return
            except Failure as failure:
                if time.monotonic() - start >= patience_s:
                    raise EngineLost(
                        f"{self.role.name} {self.url}: not up after {patience_s:.0f} s ({failure}). "
                        f"{self.role.start[0].upper()}{self.role.start[1:]}; if it is slow to start, raise "
                        "rollout.vllm.start_timeout_s."
                    ) from failure
            if not said:
                print(f"waiting up to {patience_s:.0f} s for {self.role.name} {self.url}", file=sys.stderr)
                said = True
            self.sleep(1.0)


def _excerpt(text: bytes, length: int = 300) -> str:
    return " ".join(text.decode(errors="replace").split())[:length]


def _cause(error: Exception, timeout_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"timed out after {timeout_s:.0f} s"
    if isinstance(error, http.client.RemoteDisconnected):
        return "it closed the connection without an answer"
    return str(error) or type(error).__name__


def _body(response: http.client.HTTPResponse, limit: int, *, cut: bool) -> bytes:
    """The answer's body. Failure where it is longer than `limit`, unless it may be cut there."""
    parts: list[bytes] = []
    size = 0
    while piece := response.read(_PIECE):
        parts.append(piece)
        size += len(piece)
        if size > limit and not cut:
            raise Failure(f"answered more than {limit} bytes")
        if size > limit:
            return b"".join(parts)[:limit]
    if response.length:  # it ended before what it had announced
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(parts)


def within(timeout_s: float) -> type[http.client.HTTPResponse]:
    """A response whose status, headers and body must all have come `timeout_s` from now. A socket's own limit is for
    each piece that comes."""
    end = time.monotonic() + timeout_s

    class TimedResponse(http.client.HTTPResponse):
        def __init__(self, sock: socket.socket, *args: Any, **named: Any) -> None:
            super().__init__(sock, *args, **named)
            self.fp.close()
            self.fp = io.BufferedReader(_Timed(sock, end))

    return TimedResponse


class _Timed(io.RawIOBase):
    """A socket's bytes until a point in time, by time.monotonic()."""

    def __init__(self, sock: socket.socket, end: float) -> None:
        self._socket, self._end = sock, end
        self._raw = sock.makefile("rb", buffering=0)  # keeps the socket open for as long as this is read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._socket.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
