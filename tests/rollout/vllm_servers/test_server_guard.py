"""Every route of a rollout server asks for the key."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from posttrain.rollout.vllm.guard import RequireKey


def ask(path: str, authorization: str | None, kind: str = "http") -> Any:
    """The status of the answer, "through" where the application got the request."""
    sent: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        sent.append({"status": "through"})

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [] if authorization is None else [(b"authorization", authorization.encode())]
    asyncio.run(RequireKey(application)({"type": kind, "path": path, "headers": headers}, None, send))
    return sent[0].get("status", sent[0].get("code"))


@pytest.mark.parametrize("path", ["/v1/completions", "/collective_rpc", "/update_weights", "/pause", "/"])
def test_the_key_opens_every_route_and_nothing_else_does(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert ask(path, "Bearer secret") == "through"
    for wrong in (None, "Bearer other", "Bearer ", "Basic secret", "secret"):
        assert ask(path, wrong) == 401


def test_health_and_start_up_need_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert ask("/health", None) == "through"
    assert ask("", None, kind="lifespan") == "through"
    assert ask("/v1/realtime", None, kind="websocket") == 1008


def test_without_a_key_all_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert ask("/collective_rpc", None) == "through"
