"""The protocol of OpenEnv's servers: what a server says of itself, and a session with one environment of it.

The package openenv-core is the server's; here its messages over a WebSocket are enough, so that its many
dependencies stay out of the trainer's environment. Written against openenv-core 0.3 and openenv 0.10, which speak
alike: {"type": "reset" | "step" | "close", "data": {...}} is answered by {"type": "observation", "data":
{"observation": {...}, "reward": ..., "done": ...}} or {"type": "error", "data": {"message", "code"}}.
"""

from __future__ import annotations

import contextlib
import json
import math
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

INSTALL = "pip install 'posttrain[openenv]'"
LARGEST_MESSAGE = 32 * 2**20
"""Bytes of one answer of a server."""
_FULL = "CAPACITY_REACHED"
_OVER = ("FACTORY_ERROR", "SESSION_ERROR", _FULL)
"""Error codes after which the server closes the session; after the others it goes on."""


class ServerFault(RuntimeError):
    """A server that is away, hangs, is full, or answers what is no answer: the episode cannot go on."""


class ActionRefused(ValueError):
    """A server that did not take an action, and says why: the model may try another."""


@dataclass(frozen=True)
class ServerTool:
    name: str
    description: str
    schema: Mapping[str, Any]


@dataclass(frozen=True)
class Described:
    """What a server says of itself.

    action  JSON schema of an action
    tools   of an environment whose actions are calls of tools (MCP); None where an action is an action
    """

    name: str
    description: str
    version: str
    action: Mapping[str, Any]
    tools: tuple[ServerTool, ...] | None


@dataclass(frozen=True)
class EpisodeStep:
    """What an environment answers. reward: a finite number, or None where the server gave none."""

    observation: Mapping[str, Any]
    reward: float | None
    done: bool


def describe(url: str, timeout_s: float) -> Described:
    """Asks a server what it is. Raises ServerFault."""
    action = _fetched(url, "/schema", timeout_s).get("action")
    if not isinstance(action, dict):
        raise ServerFault(f"{url}/schema names no action; is an OpenEnv server there?")
    about = _fetched(url, "/metadata", timeout_s)
    return Described(
        str(about.get("name") or "environment"),
        str(about.get("description") or ""),
        str(about.get("version") or ""),
        action,
        _tools(url, timeout_s) if _calls_tools(action) else None,
    )


def _calls_tools(action: Mapping[str, Any]) -> bool:
    names = set(action.get("properties") or {})
    return {"tool_name", "arguments"} <= names or names <= {"metadata"}


def _tools(url: str, timeout_s: float) -> tuple[ServerTool, ...]:
    with contextlib.closing(ServerSession(url, timeout_s)) as session:
        found = session.step({"type": "list_tools"}).observation.get("tools")
    try:
        return tuple(ServerTool(one["name"], one["description"], one["input_schema"]) for one in found or ())
    except (TypeError, KeyError) as error:
        raise ServerFault(f"{url} lists tools that are none: {error!r}") from None


def _fetched(url: str, path: str, timeout_s: float) -> dict[str, Any]:
    handlers = [urllib.request.ProxyHandler({})] if _is_here(url) else []
    try:
        with urllib.request.build_opener(*handlers).open(
            f"{url.rstrip('/')}{path}", timeout=timeout_s
        ) as got:
            found = json.loads(got.read(LARGEST_MESSAGE))
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ServerFault(f"no OpenEnv server answers at {url}{path}: {reason}") from None
    if not isinstance(found, dict):
        raise ServerFault(f"{url}{path} answers a {type(found).__name__}; is an OpenEnv server there?")
    return found


def _is_here(url: str) -> bool:
    """Whether a proxy would only stand in the way."""
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


class ServerSession:
    """One environment on a server, as long as the connection lasts. Raises ServerFault."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url, self._timeout_s = url, timeout_s
        try:
            from websockets.exceptions import WebSocketException
            from websockets.sync.client import connect
        except ImportError as error:
            raise ServerFault(f"OpenEnv's servers need the package websockets ({error}): {INSTALL}") from None
        self._broken = (WebSocketException, OSError, EOFError)
        address = f"ws{url.rstrip('/').removeprefix('http')}/ws"
        try:
            self._socket = connect(
                address,
                open_timeout=timeout_s,
                close_timeout=1.0,
                max_size=LARGEST_MESSAGE,
                proxy=None if _is_here(url) else True,
            )
        except (*self._broken, ValueError) as error:
            raise ServerFault(f"no OpenEnv server answers at {address}: {error}") from None

    def reset(self, **arguments: Any) -> EpisodeStep:
        return self._ask("reset", arguments)

    def step(self, action: Mapping[str, Any]) -> EpisodeStep:
        """Raises ActionRefused where the server says that the action is at fault, else ServerFault."""
        return self._ask("step", action)

    def close(self) -> None:
        with contextlib.suppress(Exception):  # whatever it is, the session is over
            self._socket.send(json.dumps({"type": "close"}))
        with contextlib.suppress(Exception):
            self._socket.close()

    def _ask(self, kind: str, data: Mapping[str, Any]) -> EpisodeStep:
        with contextlib.suppress(*self._broken):  # a server that hangs up may have said why: that is read
            self._socket.send(json.dumps({"type": kind, "data": data}))
        try:
            answer = self._socket.recv(timeout=self._timeout_s)
        except TimeoutError:
            raise ServerFault(f"{self.url} did not answer within {self._timeout_s:g} s") from None
        except self._broken as error:
            raise ServerFault(f"{self.url} closed the session: {error}") from None
        return self._read(answer)

    def _read(self, answer: str | bytes) -> EpisodeStep:
        try:
            found = json.loads(answer)
            kind, data = found["type"], found["data"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise self._nonsense(answer) from None
        if kind == "error" and isinstance(data, dict):
            code, said = data.get("code"), str(data.get("message"))
            if code == _FULL:
                raise ServerFault(
                    f"{self.url} has no room for another session ({said}): every response has one, so start it with "
                    "max_concurrent_envs of at least the responses of a rollout, and of an evaluation batch"
                )
            if code in _OVER:
                raise ServerFault(f"{self.url} gave the session up: {said} ({code})")
            faults = data.get("errors") or ()
            more = "; ".join(
                f"{'.'.join(map(str, e.get('loc', ())))}: {e.get('msg')}"
                for e in faults
                if isinstance(e, dict)
            )
            raise ActionRefused(more or said)
        if kind != "observation" or not isinstance(data, dict):
            raise self._nonsense(answer)
        observation, reward, done = data.get("observation"), data.get("reward"), data.get("done", False)
        if not isinstance(observation, dict) or not isinstance(done, bool):
            raise self._nonsense(answer)
        if reward is not None and (not isinstance(reward, int | float) or not math.isfinite(reward)):
            raise ServerFault(f"{self.url} gave a reward that is no number: {reward!r}")
        return EpisodeStep(observation, None if reward is None else float(reward), done)

    def _nonsense(self, answer: str | bytes) -> ServerFault:
        return ServerFault(f"{self.url} answered what is no answer of an OpenEnv server: {answer[:200]!r}")
