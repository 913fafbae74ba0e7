"""Inside an enclosure of its own: the tests, calling the program in another process and comparing what comes back.

What comes back is plain data (wire.py), compared here by Python's own types: an object of the program's with an
__eq__ of its own stays with the program and equals nothing. A name that the tests use and neither they nor Python have
is the program's (`GlobalNames`).
"""

from __future__ import annotations

import ast
import builtins
import ctypes
import importlib
import json
import os
import sys

from posttrain.rewards.sandbox.wire import FrameTooLarge, NotPlain, decode, encode, receive, send

TYPE_CHECKING = False  # `typing` takes longer to import than all the rest of a program's start
if TYPE_CHECKING:
    from types import CodeType
    from typing import Any


class ProgramGone(Exception):
    """The program has ended, or sends what is no answer: no further test can be run."""


class Link:
    """Asks the program's process, one question at a time."""

    def __init__(self, requests: int, replies: int):
        self._requests, self._replies = requests, replies
        self.gone: str | None = None

    def started(self) -> None:
        """Waits until the program has been loaded; raises what that raised."""
        self._reply()

    def ask(self, action: str, *values: Any) -> Any:
        encoded = [encode(value, _number) for value in values]
        return decode(self.ask_raw(action, *encoded), lambda number: Remote(self, number))

    def ask_raw(self, action: str, *values: Any) -> Any:
        if self.gone is not None:
            raise ProgramGone(self.gone)
        try:
            send(self._requests, [action, *values])
        except OSError:
            raise self._is_gone("ended") from None
        return self._reply()

    def _reply(self) -> Any:
        try:
            reply = receive(self._replies)
        except (EOFError, OSError):
            raise self._is_gone("ended") from None
        except FrameTooLarge:
            raise self._is_gone("returned too much") from None
        except (ValueError, RecursionError):
            raise self._is_gone("sent no answer") from None
        match reply:
            case ["ok", value]:
                return value
            case ["raised", [*names], str(said)]:
                raise _as_exception(names, said)
        raise self._is_gone("sent no answer")

    def _is_gone(self, how: str) -> ProgramGone:
        self.gone = how
        return ProgramGone(how)


def _as_exception(names: list[Any], said: str) -> Exception:
    """The nearest of Python's own exceptions, so that a test may expect one; its text names the program's."""
    for name in names:
        kind = vars(builtins).get(name) if isinstance(name, str) else None
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(said)
            except TypeError:  # UnicodeDecodeError takes five arguments
                continue
    return RuntimeError(f"{names[0] if names else 'unknown'}: {said}")


class Remote:
    """An object that stayed with the program. It equals itself alone; everything else about it the program says.

    `named`: found under a name that the tests call, so what it is called with is the tests' doing.
    """

    def __init__(self, link: Link, number: int, named: bool = False):
        vars(self).update(_link=link, _number=number, _named=named)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask("call", args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._ask("get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("item", key)

    def __contains__(self, key: Any) -> bool:
        return self._ask("contains", key) is True

    def __len__(self) -> int:
        return self._ask("length")

    def __bool__(self) -> bool:
        return self._ask("true") is True

    def __str__(self) -> str:
        return self._ask("text")

    def __iter__(self) -> Any:
        iterator = self._ask("iterate")
        while True:
            try:
                value = self._link.ask("next", iterator)
            except StopIteration:
                return
            yield value

    def _ask(self, action: str, *values: Any) -> Any:
        try:
            return self._link.ask(action, self, *values)
        except NotPlain as error:
            if self._named:
                raise
            raise TypeError(
                str(error)
            ) from None  # what is used like this is the program's choice, not the tests'


def _number(value: Any) -> Any:
    if type(value) is Remote:
        return {"t": "handle", "v": vars(value)["_number"]}
    raise NotPlain(f"a test passes a {type(value).__name__}, which is no plain data")


class GlobalNames(dict):
    """The tests' global names. One that they do not have is Python's; then the program's, where the tests call it;
    then a module's of the standard library, which a test may have left unimported."""

    def __init__(self, link: Link, called: set[str]):
        super().__init__(__name__="tests", __builtins__=builtins)
        self._link, self._called = link, called

    def __missing__(self, name: str) -> Any:
        if name in vars(builtins):
            raise KeyError(name)
        if name not in self._called and name in sys.stdlib_module_names:
            return importlib.import_module(name)
        if not self._link.ask_raw("has", name):
            raise KeyError(name)
        return self.programs(name)

    def programs(self, name: str) -> Any:
        """The program's object of that name. It is never data: no constant of the program's stands for a result."""
        match self._link.ask_raw("name", name):
            case {"t": "handle", "v": int(number)}:
                return Remote(self._link, number, named=True)
        raise ProgramGone("sent no answer")


def called_names(tests: list[str]) -> set[str]:
    """Names that the tests call as functions, Python's own only where there is no other: one test of MBPP calls a
    `sum` of the program's, and all others call the built-in functions beside what they test."""
    calls = (node for test in tests for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Call))
    names = {node.func.id for node in calls if isinstance(node.func, ast.Name)}
    return {name for name in names if name not in vars(builtins)} or names


class Unusable(Exception):
    """The tests cannot be run, whatever the program is."""


def prepare(argument: dict[str, Any], link: Link) -> tuple[GlobalNames, list[CodeType]]:
    """The tests' names and their code."""
    tests, entry = argument["tests"], argument["entry_point"]
    try:
        called = called_names(tests) | ({entry} if entry else set())
        compiled = [compile(test, "test", "exec") for test in tests]
        setup = [compile(part, "setup", "exec") for part in argument["setup"]]
        prefix = compile(argument["prefix"], "prefix", "exec")
    except (SyntaxError, ValueError) as error:
        raise Unusable(f"a test is no Python: {error}") from None
    names = GlobalNames(link, called)
    try:
        exec(prefix, names)  # helpers that stand before the function to be written
    except Exception as error:
        raise Unusable(f"the code before the program fails: {type(error).__name__}: {error}") from None
    names.pop(entry, None)
    link.started()
    for part in setup:
        exec(part, names)
    for name in called & vars(builtins).keys():
        if link.ask_raw("has", name):
            names[name] = names.programs(name)
    return names, compiled


def main(argument: dict[str, Any]) -> None:
    """`argument`: {"prefix", "entry_point", "setup": [...], "tests": [...], "requests": fd, "replies": fd}.

    Writes a line of JSON for each test to standard output, which nothing else has from here on.
    """
    _hide_memory()
    verdicts = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)

    def say(**said: Any) -> None:
        verdicts.write(json.dumps(said) + "\n")
        verdicts.flush()

    link = Link(argument["requests"], argument["replies"])
    try:
        names, tests = prepare(argument, link)
    except (Unusable, NotPlain) as error:
        say(unusable=str(error)[:300])
        return
    except BaseException as error:
        say(broken=_in_words(error))
        return
    for test in tests:
        try:
            exec(test, names)
        except NotPlain as error:
            say(unusable=str(error)[:300])
            return
        except BaseException as error:
            say(passed=False, why=_in_words(error))
        else:
            say(passed=True, why="")
        if link.gone is not None:
            return


def _hide_memory() -> None:
    """Where the program is a process beside this one (no namespaces), it may not look into it or its descriptors."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE


def _in_words(error: BaseException) -> str:
    if isinstance(error, ProgramGone):
        return f"the program {error}"
    return f"{type(error).__name__}: {error}"[:200].removesuffix(": ")
