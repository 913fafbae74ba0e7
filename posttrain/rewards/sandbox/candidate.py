"""Inside the enclosure: the program under test, answering a judge in another process.

The judge sends what to call and with what; the tests themselves, and what they expect, never come here. All of this
process belongs to the program: it may replace any function of this file, and gains by it what it would gain by
returning other values.
"""

from __future__ import annotations

import os
import sys

from posttrain.rewards.sandbox.program import first_that_compiles
from posttrain.rewards.sandbox.wire import decode, encode, receive, send

TYPE_CHECKING = False  # `typing` takes longer to import than all the rest of a program's start
if TYPE_CHECKING:
    from typing import Any

_KEPT = 100_000  # objects that stay here; a program that hands out more is broken


class Answers:
    """Does what the judge asks, on the program's names and on objects that it has returned."""

    def __init__(self, names: dict[str, Any]):
        self.names = names
        self.kept: list[Any] = []

    def value(self, encoded: Any) -> Any:
        return decode(encoded, self.kept.__getitem__)

    def encoded(self, value: Any) -> Any:
        return encode(value, self._keep)

    def _keep(self, value: Any) -> Any:
        if len(self.kept) >= _KEPT:
            raise MemoryError("too many objects")
        self.kept.append(value)
        return {"t": "handle", "v": len(self.kept) - 1}

    def answer(self, request: list[Any]) -> Any:
        action, *rest = request
        if action == "has":
            return rest[0] in self.names
        if action == "name":
            return self._keep(self.names[rest[0]])
        target, *values = [self.value(value) for value in rest]
        return self.encoded(_ACTIONS[action](target, *values))


_ACTIONS: dict[str, Any] = {
    "call": lambda target, args, kwargs: target(*args, **kwargs),
    "get": getattr,
    "set": setattr,
    "item": lambda target, key: target[key],
    "contains": lambda target, key: key in target,
    "length": len,
    "true": bool,
    "iterate": iter,
    "next": next,
    "text": str,
}


def main(argument: dict[str, Any]) -> None:
    """`argument`: {"sources": [...], "requests": fd, "replies": fd}."""
    requests, replies = argument["requests"], argument["replies"]
    broken: list[Any] | None = None
    module = sys.modules["program"] = type(sys)(
        "program"
    )  # not __main__: what is for a script alone stays out
    try:
        exec(first_that_compiles(argument["sources"]), module.__dict__)
    except BaseException as error:  # sys.exit() at its end also keeps a program from being tested
        broken = _failure(error)
    send(replies, broken or ["ok", None])
    answers = Answers(module.__dict__)
    while True:
        try:
            request = receive(requests)
        except EOFError:
            os._exit(0)
        try:
            reply = broken or ["ok", answers.answer(request)]
            send(replies, reply)
        except BaseException as error:
            send(replies, _failure(error))


def _failure(error: BaseException) -> list[Any]:
    try:
        said = str(error)[:200]
    except BaseException:  # its own __str__
        said = ""
    return ["raised", [kind.__name__ for kind in type(error).__mro__], said]
