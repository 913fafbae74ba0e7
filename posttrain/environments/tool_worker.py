"""The worker that holds tools and environments: each environment in a process of its own, forked from this one, which
can be ended without a loss to the others.

Forking is cheap and safe here: the process has loaded the user's files and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import multiprocessing
import os
import random
import secrets
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

from posttrain.environments.orders import Order, Reply, shortened
from posttrain.environments.tool_specs import (
    BUILT_IN_ENVIRONMENTS,
    EnvironmentSpec,
    ToolSpec,
    load_environment,
    load_tool,
    prepare_tool,
)
from posttrain.rewards.descendants import MARK, end_descendants


def slots(
    tools: Sequence[ToolSpec], environment: EnvironmentSpec | None, base_dir: str
) -> Callable[[Order], Reply]:
    """The factory of the worker: loads what is called, then answers orders."""
    functions = {}
    for spec in tools:
        function = load_tool(spec.name, base_dir)
        functions[function.__name__] = partial(function, **spec.args)
        prepare_tool(spec)
    make: Callable[[], Any] | None = None
    if environment is not None:
        make = load_environment(environment, base_dir)
        if environment.name not in BUILT_IN_ENVIRONMENTS:
            make = partial(make, **environment.args)
    return _Slots(functions, make)


class _Slots:
    def __init__(self, functions: Mapping[str, Callable[..., Any]], make: Callable[[], Any] | None) -> None:
        self._functions, self._make = functions, make
        self._children: dict[str, _Child] = {}

    def __call__(self, order: Order) -> Reply:
        child = self._children.get(order.slot)
        if child is None:
            if order.act not in ("tool", "open"):
                return Reply("gone", said="the environment was ended before, so it answers no more")
            child = self._children[order.slot] = _Child(_Acts(self._functions, self._make))
        reply = child.ask(order)
        if reply.end in ("timeout", "crash"):
            del self._children[order.slot]
        return reply


class _Child:
    """A forked process that answers orders one by one."""

    def __init__(self, acts: _Acts) -> None:
        mark = secrets.token_hex(12)
        self._pipe, theirs = multiprocessing.Pipe()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            self._pipe.close()
            os.environ[MARK] = (
                mark  # for what it starts; the keeper of this worker finds the rest by their parents
            )
            _live(theirs, acts)
        self._mark = mark
        theirs.close()

    def ask(self, order: Order) -> Reply:
        try:
            self._pipe.send(order)
            if not self._pipe.poll(order.timeout_s):
                self._end()
                return Reply(
                    "timeout", said=f"{order.name}: no answer within {order.timeout_s:g} s; it was ended"
                )
            return self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return Reply("crash", said=f"{order.name}: its process {self._end()}")

    def _end(self) -> str:
        """Ends the process and what it has started; says how it had ended where it had."""
        end_descendants(self._pid, self._mark)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        self._pipe.close()
        _, status = os.waitpid(self._pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def _live(pipe: Any, acts: _Acts) -> NoReturn:
    try:
        os.setsid()  # a signal to the worker's group is not for it
        while True:
            pipe.send(acts(pipe.recv()))
            sys.stderr.flush()
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass
    finally:
        os._exit(0)


class _Acts:
    """What a child does with an order; the environment is made when its first episode begins."""

    def __init__(self, functions: Mapping[str, Callable[..., Any]], make: Callable[[], Any] | None) -> None:
        self._functions, self._make = functions, make
        self._environment: Any = None

    def __call__(self, order: Order) -> Reply:
        try:
            return self._done(order)
        except (Exception, SystemExit) as error:  # whatever it raises is told to the model, or stops the run
            said = f"{type(error).__name__}: {error}"
            if order.act not in ("tool", "method"):
                return Reply("error", said=said, detail=traceback.format_exc())
            said, cut = shortened(said, order.max_characters)
            return Reply("error", cut=cut, said=said)

    def _done(self, order: Order) -> Reply:
        if order.act == "open":
            return self._opened(order)
        if order.act == "read":
            value = getattr(self._environment, order.name)
            if callable(value):
                raise AttributeError(f"{order.name} is a method; environments in other processes show values")
            return Reply("done", value)
        called = (
            self._functions[order.name] if order.act == "tool" else getattr(self._environment, order.name)
        )
        value = _settled(called(**order.arguments))
        if order.act == "score":
            return Reply("done", None if value is None else float(value))
        text, cut = shortened(value if isinstance(value, str) else str(value), order.max_characters)
        return Reply("done", text, cut)

    def _opened(self, order: Order) -> Reply:
        random.seed(order.seed)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(order.seed % 2**32)
        if self._environment is None:
            assert self._make is not None
            self._environment = self._make()
        said = _settled(self._environment.reset(**order.arguments))
        if said is not None and not isinstance(said, str):
            raise TypeError(f"reset returned a {type(said).__name__}; it returns text for the model, or None")
        return Reply("done", said)


def _settled(value: Any) -> Any:
    """The value, or what a coroutine comes to."""
    return asyncio.run(value) if inspect.iscoroutine(value) else value
