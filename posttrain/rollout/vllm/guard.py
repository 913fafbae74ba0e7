"""A key for every route of a rollout server. vLLM asks for its key under /v1 only; the routes that replace weights
or call into the workers lie elsewhere and would stay open.

Given to vLLM as `--middleware posttrain.rollout.vllm.guard.RequireKey`; the key is that of VLLM_API_KEY. What passes
it meets the lease of server_lease.py: one run at a time changes the weights.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from posttrain.rollout.vllm.server_lease import OneRun

_OPEN = frozenset({"/health", "/ping"})


class RequireKey:
    """ASGI middleware: 401 unless the bearer token is the key. Without a key in the environment all may pass."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = OneRun(app)
        self._key = os.environ.get("VLLM_API_KEY", "").encode()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        carries_a_request = scope["type"] in ("http", "websocket")
        if not carries_a_request or scope["path"] in _OPEN or self._allows(scope["headers"]):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        body = b'{"error": "wrong or missing API key"}'
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _allows(self, headers: list[tuple[bytes, bytes]]) -> bool:
        if not self._key:
            return True
        given = dict(headers).get(b"authorization", b"")
        scheme, _, token = given.partition(b" ")
        return scheme.lower() == b"bearer" and secrets.compare_digest(token, self._key)
