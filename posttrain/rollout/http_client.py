"""One rollout server as the trainer sees it: calls with a key, a time limit and retries, and errors that name it.

Only the standard library: the trainer's machine needs no vLLM to talk to one.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from posttrain.rollout.base import EngineLost, EngineRefused
from posttrain.rollout.options import is_address

START = "start it with: launch/serve_vllm.sh MODEL"
_DIRECT = urllib.request.build_opener(
    urllib.request.ProxyHandler({})
)  # a cluster's web proxy is not for this
_NO_ANSWER = (urllib.error.URLError, http.client.HTTPException, ConnectionError, socket.timeout, TimeoutError)
_MEMORY = ("out of memory", "OutOfMemory", "KV cache", "ENOMEM", "Cannot allocate memory")


class _Failure(Exception):
    """One try that failed in a way worth another."""


@dataclass(frozen=True)
class Server:
    """One server.

    url            as in the recipe: http://host:port
    api_key        sent as a bearer token; None: the server was started without one
    timeout_s      the longest one call may take, its retries included
    retries        further tries after the first
    retry_delay_s  pause before the first retry; it doubles from try to try
    """

    url: str
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 900.0
    retries: int = 4
    retry_delay_s: float = 1.0
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)

    def __post_init__(self) -> None:
        if not is_address(self.url):
            raise ValueError(f"rollout server {self.url!r}: write it as http://host:port")

    @property
    def host(self) -> str:
        host = urlsplit(self.url).hostname
        if host is None:
            raise ValueError(f"rollout server {self.url!r} has no host")
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
            except _Failure as failure:
                reason = str(failure)
            except ValueError as error:
                reason = f"garbage: {error}"
            delay = self.retry_delay_s * 2**attempt
            if attempt + 1 < tries and time.monotonic() - start + delay < limit:
                self.sleep(delay)
        raise EngineLost(self._lost(path, reason, attempt + 1, time.monotonic() - start))

    def _once(self, method: str, path: str, body: Any, timeout_s: float) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url.rstrip("/") + path, data=data, headers=headers, method=method
        )
        try:
            with _DIRECT.open(request, timeout=timeout_s) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            self._refused(error, path)
            raise _Failure(f"HTTP {error.code}: {_excerpt(error.read())}") from error
        except _NO_ANSWER as error:
            raise _Failure(_cause(error, timeout_s)) from error
        if not text:
            return None
        try:
            return json.loads(text)
        except ValueError as error:
            raise _Failure(f"answered something that is not JSON: {_excerpt(text)}") from error

    def _refused(self, error: urllib.error.HTTPError, path: str) -> None:
        """Raises for an answer that another try would not change."""
        if error.code in (401, 403):
            raise EngineRefused(
                f"rollout server {self.url}: wrong API key (HTTP {error.code}). The trainer sends the value of the "
                "environment variable named by rollout.vllm.api_key_env; give it the key that the server was "
                "started with."
            ) from error
        if error.code == 404:
            raise EngineRefused(
                f"rollout server {self.url}: it has no {path}. It is not a vLLM server, or was started without "
                f"VLLM_SERVER_DEV_MODE=1, which weight updates need; {START}"
            ) from error
        if 400 <= error.code < 500 and error.code not in (408, 425, 429):
            raise EngineRefused(
                f"rollout server {self.url}: it refuses {path} (HTTP {error.code}): {_excerpt(error.read())}"
            ) from error

    def _lost(self, path: str, reason: str, tries: int, seconds: float) -> str:
        """The message when all tries failed: which server, what was seen, what to do."""
        text = f"rollout server {self.url}: no usable answer to {path} in {tries} tries and {seconds:.0f} s ({reason})."
        if any(word in reason for word in _MEMORY):
            return (
                f"{text} It ran out of memory: restart it with a smaller --max-num-seqs, --max-model-len or "
                "--gpu-memory-utilization, or a model that fits; then resume with --resume."
            )
        if "refused" in reason or "reset" in reason or "closed" in reason or "HTTP 5" in reason:
            return f"{text} Is it running? Look at its log, {START}; then resume with --resume."
        if "timed out" in reason:
            return (
                f"{text} It is busy or hangs: look at its log; raise rollout.vllm.timeout_s if one answer may take "
                "longer, or restart it; then resume with --resume."
            )
        if "NaN" in reason:
            return f"{text} Check the last losses and gradients; resume from an earlier checkpoint."
        return f"{text} Is this the address of a vLLM server? Check rollout.vllm.servers, {START}."

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
            except _Failure as failure:
                if time.monotonic() - start >= patience_s:
                    raise EngineLost(
                        f"rollout server {self.url}: not up after {patience_s:.0f} s ({failure}). "
                        f"{START[0].upper()}{START[1:]}; if it is slow to start, raise rollout.vllm.start_timeout_s."
                    ) from failure
            if not said:
                print(f"waiting up to {patience_s:.0f} s for rollout server {self.url}", file=sys.stderr)
                said = True
            self.sleep(1.0)


def _excerpt(text: bytes, length: int = 300) -> str:
    return " ".join(text.decode(errors="replace").split())[:length]


def _cause(error: Exception, timeout_s: float) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return f"timed out after {timeout_s:.0f} s"
    if isinstance(reason, http.client.RemoteDisconnected):
        return "it closed the connection without an answer"
    return str(reason) or type(reason).__name__
