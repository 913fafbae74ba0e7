"""Tools and an environment as TRL takes them: functions and a factory of objects whose methods are called elsewhere.

toolbox = Toolbox([ToolSpec("python")], EnvironmentSpec("game.py:Game"))
GRPOTrainer(..., tools=toolbox.functions, environment_factory=toolbox.environment_factory)
"""

from __future__ import annotations

import functools
import inspect
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from posttrain.data.reward_columns import unmarked
from posttrain.environments.orders import Order, Reply
from posttrain.environments.tool_specs import (
    EnvironmentFault,
    EnvironmentSpec,
    ToolFault,
    ToolSpec,
    load_environment,
    load_tool,
)
from posttrain.environments.tool_use import ToolUse
from posttrain.rewards.worker_pool import Outcome, WorkerPool, WorkerStartError, run_pools, start_pools

_GRACE_S = 60.0
"""Beyond the longest call: by then the worker itself is stuck."""
_WAIT_S = 0.5
"""Before an episode is begun once more; the next time four times as long."""
_MOST_TOLD = 3
"""Responses that were not judged of which the log tells why; the others are counted."""
_NO_TOOLS = ("reset", "get_reward")
logger = logging.getLogger(__name__)


class ToolCallFailed(Exception):
    """What a call came to, where it is not an answer; TRL tells the model."""


class Toolbox:
    """One rank's tools and environment, in one worker process and its children.

    functions            with names, docstrings and parameters as the model is shown them
    environment_factory  makes one environment a response; None without an environment
    shown_methods        the environment's, as functions that a schema is made of
    use                  what was called, and how it ended
    episode_seed         environments draw from it and their place; the trainer sets it for each rollout

    Raises ToolFault where something cannot be found, or twice has one name.
    """

    def __init__(
        self,
        tools: Sequence[ToolSpec],
        environment: EnvironmentSpec | None = None,
        *,
        base_dir: str | Path = ".",
        startup_timeout_s: float = 300.0,
    ) -> None:
        limits = [one.timeout_s for one in (*tools, *([environment] if environment else []))]
        self._pool = WorkerPool(
            "posttrain.environments.tool_worker:slots",
            {"tools": list(tools), "environment": environment, "base_dir": str(Path(base_dir).resolve())},
            timeout_s=max(limits, default=0.0) + _GRACE_S,
            startup_timeout_s=startup_timeout_s,
        )
        self.use = ToolUse()
        self._told = 0
        self.episode_seed = 0
        self.functions = [self._function(spec, base_dir) for spec in tools]
        self.environment_factory: Callable[[], Any] | None = None
        self.shown_methods: list[Callable[..., Any]] = []
        names = [one.__name__ for one in self.functions]
        if environment is not None:
            proxy = self._environment_class(environment, base_dir)
            places = itertools.count()
            self.environment_factory = lambda: proxy(next(places))
            names += tool_methods(proxy)
            self.shown_methods = [vars_of(proxy)[name] for name in tool_methods(proxy)]
        for name in names:
            if names.count(name) > 1:
                raise ToolFault(
                    f"two tools are called {name!r}; a model could not tell them apart: rename one"
                )

    def start(self) -> None:
        """Starts the worker, so that what it cannot load is known early. Raises EnvironmentFault."""
        self._with_worker(lambda: start_pools([self._pool]))

    def close(self) -> None:
        self._pool.close()

    def ask(self, order: Order) -> Reply:
        """What became of a call. Raises EnvironmentFault where the worker cannot be started."""
        found: list[Outcome] = []
        self._pool.submit(order, found.append)
        self._with_worker(lambda: run_pools([self._pool]))
        outcome = found[0]
        if outcome.failure is None:
            return outcome.result
        return Reply("crash", said=f"{order.name}: {outcome.message}")

    def _with_worker(self, action: Callable[[], None]) -> None:
        try:
            action()
        except WorkerStartError as error:
            raise EnvironmentFault(f"the worker of tools and environments does not start: {error}") from error

    def _call(self, order: Order, *, of_environment: bool) -> str:
        """A call of the model's: its answer. Raises ToolCallFailed, whose text the model is shown."""
        begin = time.perf_counter()
        reply = self.ask(order)
        self.use.note(reply, time.perf_counter() - begin, of_environment=of_environment)
        if reply.end != "done":
            raise ToolCallFailed(reply.said)
        return reply.value

    def _begun(self, order: Order, tries: int) -> Reply:
        """The reply to an order that begins an episode, asked up to `tries` times."""
        reply = self.ask(order)
        for attempt in range(1, tries):
            if reply.end == "done":
                break
            logger.warning("%s did not begin (%s); once more", order.slot, reply.said)
            self.use.note_begun_again()
            time.sleep(_WAIT_S * 4 ** (attempt - 1))
            reply = self.ask(order)
        return reply

    def _note_unscored(self, name: str, reply: Reply) -> None:
        self.use.note_unscored()
        if self._told < _MOST_TOLD:
            self._told += 1
            logger.warning("environment %r: a response is not judged: %s\n%s", name, reply.said, reply.detail)

    @staticmethod
    def hear(environments: Sequence[Any] | None, responses: Sequence[Any]) -> None:
        """Tells each environment the messages of its response, for a `get_reward(self, messages)`."""
        for one, messages in zip(environments or (), responses, strict=False):
            one._heard = messages

    # ---- tools

    def _function(self, spec: ToolSpec, base_dir: str | Path) -> Callable[..., str]:
        function = load_tool(spec.name, base_dir)

        def call(**arguments: Any) -> str:
            limits = {"timeout_s": spec.timeout_s, "max_characters": spec.max_characters}
            order = Order("tools", "tool", function.__name__, arguments, **limits)
            return self._call(order, of_environment=False)

        return shown_as(function, call, hidden=spec.args, what=f"tool {spec.name!r}")

    # ---- environments

    def _environment_class(self, spec: EnvironmentSpec, base_dir: str | Path) -> type:
        """A class that looks like the environment's to TRL and to the model, and asks the worker."""
        original, toolbox = load_environment(spec, base_dir), self
        limits = {"timeout_s": spec.timeout_s, "max_characters": spec.max_characters}
        if not callable(vars_of(original).get("reset")):
            raise ToolFault(f"environment {spec.name!r} has no method reset(self, **row)")

        scorer = vars_of(original).get("get_reward")
        hears = scorer is not None and "messages" in inspect.signature(scorer).parameters

        def begin(self: Any, place: int) -> None:
            self._heard = None
            self._slot = f"environment {place}"
            self._place = place

        def reset(self: Any, **row: Any) -> str | None:
            self._heard = None
            seed = (toolbox.episode_seed + self._place) % 2**63
            order = Order(self._slot, "open", "reset", unmarked(row), seed=seed, **limits)
            reply = toolbox._begun(order, getattr(original, "_begin_tries", 1))
            if reply.end != "done":
                raise EnvironmentFault(f"environment {spec.name!r}: reset: {reply.said}\n{reply.detail}")
            return reply.value

        def get_reward(self: Any) -> float | None:
            heard = {"messages": self._heard} if hears else {}
            reply = toolbox.ask(Order(self._slot, "score", "get_reward", heard, **limits))
            if reply.end == "error" and not getattr(original, "_unjudged_on_error", False):
                raise EnvironmentFault(f"environment {spec.name!r}: get_reward: {reply.said}\n{reply.detail}")
            if reply.end != "done":  # it cannot be judged
                toolbox._note_unscored(spec.name, reply)
            return reply.value

        def read(self: Any, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(name)
            reply = toolbox.ask(Order(self._slot, "read", name, **limits))
            if reply.end != "done":
                raise AttributeError(f"environment {spec.name!r}: {name}: {reply.said}")
            return reply.value

        def method(name: str, function: Callable[..., Any]) -> Callable[..., str]:
            def call(self: Any, **arguments: Any) -> str:
                order = Order(self._slot, "method", name, arguments, **limits)
                return toolbox._call(order, of_environment=True)

            return shown_as(function, call, what=f"environment {spec.name!r}: {name}")

        members: dict[str, Any] = {
            name: method(name, vars_of(original)[name]) for name in tool_methods(original)
        }
        members |= {"__init__": begin, "__getattr__": read, "reset": reset, "__doc__": original.__doc__}
        if callable(vars_of(original).get("get_reward")):
            members["get_reward"] = get_reward
        return type(original.__name__, (), members)


def vars_of(cls: type) -> dict[str, Any]:
    """The functions a class has, its parents' too."""
    return dict(inspect.getmembers(cls, predicate=inspect.isfunction))


def tool_methods(cls: type) -> list[str]:
    """The methods that TRL shows to the model: all public ones but reset and get_reward."""
    return [name for name in vars_of(cls) if not name.startswith("_") and name not in _NO_TOOLS]


def shown_as(
    function: Callable[..., Any], call: Callable[..., str], *, what: str, hidden: Iterable[str] = ()
) -> Callable[..., str]:
    """`call` with the name, docstring and parameters of `function`, less those that are `hidden` or behind a `*`.

    Raises ToolFault for a setting that it does not have, or lacks.
    """
    signature, given = inspect.signature(function), set(hidden)
    if unknown := sorted(given - set(signature.parameters)):
        raise ToolFault(f"{what} has no parameter {unknown[0]!r}; it has {', '.join(signature.parameters)}")
    settings = {name: one for name, one in signature.parameters.items() if one.kind is one.KEYWORD_ONLY}
    for name, one in settings.items():
        if one.default is one.empty and name not in given:
            raise ToolFault(f"{what} needs its setting {name!r}; give it under args")
    hidden = given | settings.keys()
    shown = [one for name, one in signature.parameters.items() if name not in hidden]
    functools.update_wrapper(call, function)
    call.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]  # functions take attributes
    call.__annotations__ = {k: v for k, v in function.__annotations__.items() if k not in hidden}
    return call
