"""The server's side of "one run at a time": a lease that a trainer takes and keeps, and that guards the weights.

Two trainers that send weights to one server would each sample from the other's. While a lease is held, requests that
change the server are let through from its run alone; all may go on asking for completions. A lease that is not renewed
runs out, so a trainer that was killed does not block its server for ever.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

LEASE = "/posttrain/lease"
LEASE_S = 60.0
RUN_HEADER = b"x-posttrain-run"
_READ_ONLY = ("/v1/", "/tokenize", "/detokenize", "/health", "/ping", "/is_sleeping", "/pooling", "/score")
_LONGEST_BODY = 1 << 16


class OneRun:
    """ASGI middleware. POST /posttrain/lease takes or renews the lease (409 and its holder where another run has it),
    DELETE gives it back. A request of the holder's renews it too."""

    def __init__(
        self, app: Callable[..., Awaitable[None]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app, self._clock = app, clock
        self._holder: dict[str, Any] | None = None
        self._until = 0.0

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        run = dict(scope["headers"]).get(RUN_HEADER, b"").decode(errors="replace")
        if scope["path"] == LEASE:
            await _answer(send, *self._lease(scope["method"], run, await _body(receive)))
            return
        holder = self._live()
        if holder is not None and run == holder["run"]:
            self._until = self._clock() + LEASE_S
        elif holder is not None and scope["method"] == "POST" and not scope["path"].startswith(_READ_ONLY):
            await _answer(send, 409, {"error": f"this server is in use by {in_words(holder)}"})
            return
        await self._app(scope, receive, send)

    def _live(self) -> dict[str, Any] | None:
        return self._holder if self._clock() < self._until else None

    def _lease(self, method: str, run: str, body: Any) -> tuple[int, dict[str, Any]]:
        holder = self._live()
        if not run or not isinstance(body, dict) or method not in ("POST", "DELETE"):
            return 400, {"error": "a lease is asked for by POST, with X-Posttrain-Run and a JSON body"}
        if holder is not None and holder["run"] not in (run, body.get("instead_of")):
            return 409, {**holder, "expires_in_s": self._until - self._clock()}
        self._holder = {**body, "run": run} if method == "POST" else None
        self._until = self._clock() + LEASE_S
        return 200, {"seconds": LEASE_S}


def in_words(holder: dict[str, Any]) -> str:
    return f"run {holder['run']} (process {holder.get('pid', '?')} on {holder.get('host', '?')})"


async def _body(receive: Any) -> Any:
    """The request's JSON; None where there is none."""
    text = b""
    while len(text) < _LONGEST_BODY:
        message = await receive()
        text += message.get("body", b"")
        if not message.get("more_body"):
            break
    try:
        return json.loads(text)
    except ValueError:
        return None


async def _answer(send: Any, status: int, body: dict[str, Any]) -> None:
    text = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
