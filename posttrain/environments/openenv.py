"""`environment: {name: openenv, args: {url: http://127.0.0.1:8000}}`: an environment of an OpenEnv server.

Every response has a session of its own. Where the server's actions are calls of tools, its tools are what the model is
shown; else one tool, whose parameters are the fields of an action. What the server gives for the steps, added up, is
the reward. A session that fails is over: the model is told, and its response is not judged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Gt
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from posttrain.environments.openenv_client import (
    ActionRefused,
    Described,
    ServerFault,
    ServerSession,
    describe,
)
from posttrain.environments.schema_tools import described
from posttrain.environments.tool_specs import ToolFault
from posttrain.recipe.errors import explain, suggest
from posttrain.settings import STRICT

OVER = "The episode is over."
"""What a call is told that comes after the server has said `done`."""


@dataclass(frozen=True, config=STRICT)
class OpenEnvSettings:
    url: Annotated[str, Field(pattern=r"^https?://[^/\s]+(/\S*)?$")]
    """of the server"""
    tool: str = "act"
    """name of the tool that sends an action; not read where the server has tools of its own"""
    about: str | None = None
    """what the model is told of that tool; None: the server's description"""
    columns: tuple[str, ...] = ()
    """of the row that the server's reset is given, beside the seed"""
    show: str | None = None
    """field of an observation that the model reads; None: all of them"""
    reward: Literal["sum", "last"] = "sum"
    """of the rewards of an episode's steps"""
    connect_s: Annotated[float, Gt(0)] = 10.0
    """how long a server may take to open a session, or to say what it is"""

    def __post_init__(self) -> None:
        for word in (self.tool, *self.columns):
            if not word.isidentifier() or word.startswith("_"):
                raise ValueError(f"{word!r} is no name")


def openenv_settings(args: Mapping[str, Any]) -> OpenEnvSettings:
    """Raises ToolFault, a sentence."""
    known = tuple(OpenEnvSettings.__dataclass_fields__)
    try:
        return TypeAdapter(OpenEnvSettings).validate_json(json.dumps(dict(args)), strict=True)
    except ValidationError as error:
        faults = explain(
            error,
            "args",
            dict(args),
            lambda place: (
                f"openenv has no setting {place[-1]!r}"
                + (suggest(str(place[-1]), known) or f"; it has {', '.join(known)}")
            ),
        )
        raise ToolFault("; ".join(faults)) from None


def openenv_environment(**args: Any) -> type:
    """The class of the server's environment. Raises ToolFault, also where no server answers."""
    settings = openenv_settings(args)
    try:
        found = describe(settings.url, settings.connect_s)
    except (ServerFault, ActionRefused) as error:
        raise ToolFault(str(error)) from None
    return type("OpenEnv", (OpenEnvEpisode,), {"_settings": settings, **tools_of(found, settings)})


def tools_of(found: Described, settings: OpenEnvSettings) -> dict[str, Any]:
    """Name -> method. Raises ToolFault where a model cannot be shown one."""
    if found.tools is None:
        about = settings.about or found.description or f"Acts in {found.name}."
        tool = described(settings.tool, about, found.action, OpenEnvEpisode._act, left_out=("metadata",))
        return {settings.tool: tool}
    if not found.tools:
        raise ToolFault(f"{settings.url} lists no tools, so there is nothing to call")
    made = {}
    for one in found.tools:

        def call(self: Any, arguments: dict[str, Any], name: str = one.name) -> str:
            return self._act({"type": "call_tool", "tool_name": name, "arguments": arguments})

        made[one.name] = described(one.name, one.description, one.schema, call)
    return made


class OpenEnvEpisode:
    """A response's session. Without a step the reward is 0."""

    _settings: OpenEnvSettings
    _begin_tries = 3  # a server may be busy closing the sessions of the rollout before
    _unjudged_on_error = True

    def __init__(self) -> None:
        self._session: ServerSession | None = None

    def reset(self, **row: Any) -> str | None:
        """Begins an episode; what its first observation says."""
        self._close()
        self.rewards: list[float] = []
        self.steps, self.done, self.lost = 0, False, ""
        wanted = self._settings.columns
        if missing := [name for name in wanted if name not in row]:
            raise KeyError(f"the row has no column {missing[0]!r}, which the environment's args name")
        self._session = ServerSession(self._settings.url, self._settings.connect_s)
        begun = self._session.reset(seed=seed_of(row), **{name: row[name] for name in wanted})
        self.done = begun.done
        return observation_text(begun.observation, self._settings.show) or None

    def get_reward(self) -> float:
        """What the server gave for the steps. Ends the session. Raises ServerFault where it broke."""
        self._close()
        if self.lost:
            raise ServerFault(self.lost)
        given = self.rewards or [0.0]
        return given[-1] if self._settings.reward == "last" else sum(given)

    def _act(self, action: dict[str, Any]) -> str:
        if self.lost:
            raise ServerFault(f"the episode was lost before: {self.lost}")
        if self.done:
            return OVER
        assert self._session is not None
        try:
            step = self._session.step(action)
        except ServerFault as error:
            self.lost = str(error)
            raise
        self.steps, self.done = self.steps + 1, step.done
        if step.reward is not None:
            self.rewards.append(step.reward)
        return observation_text(step.observation, self._settings.show)

    def _close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


def seed_of(row: Mapping[str, Any]) -> int:
    """Of an episode: the row's column `seed`, else made of the row. All responses to a row begin alike."""
    if isinstance(seed := row.get("seed"), int) and not isinstance(seed, bool):
        return seed
    text = json.dumps({str(key): value for key, value in row.items()}, sort_keys=True, default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def observation_text(observation: Mapping[str, Any], show: str | None) -> str:
    """What the model reads. Of a call's observation its result; of one with a single field, that field.

    Raises ActionRefused with what a tool's server says of a call that failed, ServerFault without the field `show`.
    """
    if show is not None:
        if show not in observation:
            names = ", ".join(observation) or "none"
            raise ServerFault(f"an observation has no field {show!r}; its fields are {names}")
        return _plain(observation[show])
    if {"tool_name", "result"} <= observation.keys():
        if error := observation.get("error"):
            raise ActionRefused(str(error.get("message", error)) if isinstance(error, dict) else str(error))
        result = observation["result"]
        return _plain(result["data"] if isinstance(result, dict) and "data" in result else result)
    said = {key: value for key, value in observation.items() if value is not None and key != "metadata"}
    if len(said) == 1:
        return _plain(next(iter(said.values())))
    return "\n".join(f"{key}: {_plain(value)}" for key, value in said.items())


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping | Sequence):
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value)


def openenv_lines(args: Mapping[str, Any]) -> list[str]:
    """What `plan` says of the server, which it asks. Raises ToolFault."""
    settings = openenv_settings(args)
    try:
        found = describe(settings.url, settings.connect_s)
    except (ServerFault, ActionRefused) as error:
        raise ToolFault(
            f"{error}; start it, or write another url (environment: args: url: {settings.url})"
        ) from None
    names = ", ".join(tools_of(found, settings))
    version = f" {found.version}" if found.version else ""
    rewards = "the last of its rewards" if settings.reward == "last" else "the sum of its rewards"
    return [
        f"OpenEnv server {settings.url}: {found.name}{version}, "
        f"{'tools' if found.tools is not None else 'an action as the tool'} {names}",
        f"a session a response, from the row's seed; the reward is {rewards}, and counts with weight 1",
    ]
