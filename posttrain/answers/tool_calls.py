"""Calls of tools in a text: read, compared by structure, and, of a text that is still being written, as far as it is.

    [weather(city="Paris", days=3), clock(zone="CET")]
    {"name": "weather", "arguments": {"city": "Paris", "days": 3}}      (one, a list of them, or in <tool_call> tags)

A call has a name and arguments, whose values keep their types. Positional arguments are not read: an API names its own.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

_TAGGED = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_WORD = re.compile(r"\w+")
_NAME = re.compile(r"[^\W\d][\w.\- ]*")
_CONSTANTS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_OPENING, _CLOSING = "([{", ")]}"


@dataclass
class ToolCall:
    """One call. `closed`: its bracket stands; a text in the middle of a call has its last one open."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    closed: bool = True


def read_calls(text: str) -> list[ToolCall] | None:
    """The calls that the text consists of, behind its reasoning if any; None where it is anything else."""
    text = text.rpartition("</think>")[2].strip()
    if tagged := _TAGGED.findall(text):
        found = [_json_calls(part) for part in tagged]
        return None if None in found else [call for calls in found for call in calls or []]
    if text.startswith(("{", "[{")):
        return _json_calls(text)
    calls, rest = _written_calls(text)
    return calls if calls and rest == "" and all(call.closed for call in calls) else None


def read_open_calls(text: str) -> list[ToolCall]:
    """The calls as far as the text is written: a name once its bracket is open, an argument once its value has ended.
    JSON is read only once it is whole."""
    whole = read_calls(text)
    return _written_calls(text.rpartition("</think>")[2].strip())[0] if whole is None else whole


def _json_calls(text: str) -> list[ToolCall] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    calls: list[ToolCall] = []
    for item in found if isinstance(found, list) else [found]:
        arguments = item.get("arguments", {}) if isinstance(item, dict) else None
        if not isinstance(arguments, dict) or not isinstance(item.get("name"), str):
            return None
        calls.append(ToolCall(item["name"], arguments))
    return calls or None


def _written_calls(text: str) -> tuple[list[ToolCall], str | None]:
    """Calls in the first spelling, and what is left behind them; None for what is left where they are unfinished."""
    listed = text.startswith("[")
    at = 1 if listed else 0
    calls: list[ToolCall] = []
    while True:
        name, bracket, _ = text[at:].partition("(")
        if not bracket or not _NAME.fullmatch(name.strip()):
            return calls, None
        call = ToolCall(name.strip(), closed=False)
        calls.append(call)
        end = _read_arguments(text, at + len(name) + 1, call)
        if end is None:
            return calls, None
        call.closed = True
        rest = text[end:].lstrip()
        if not listed or rest.startswith("]"):
            return calls, rest[1:].strip() if listed else rest
        if not rest.startswith(","):
            return calls, None
        at = len(text) - len(rest) + 1


def _read_arguments(text: str, at: int, call: ToolCall) -> int | None:
    """Reads into `call` from behind its bracket; the place behind the closing one, None where there is none."""
    if text[at:].lstrip().startswith(")"):
        return text.index(")", at) + 1
    while True:
        end = _value_end(text, at)
        if end is None:
            return None
        key, equals, value = text[at:end].partition("=")
        key = key.strip()
        if not equals or not key.isidentifier() or key in call.arguments:
            return None
        call.arguments[key] = _value(value.strip())
        if text[end] == ")":
            return end + 1
        at = end + 1


def _value_end(text: str, at: int) -> int | None:
    """Where the comma or bracket stands that ends a value; those in quotes and inner brackets do not."""
    depth, quote, i = 0, "", at
    while i < len(text):
        character = text[i]
        if quote:
            if character == "\\":
                i += 1
            elif character == quote:
                quote = ""
        elif character in "\"'":
            quote = character
        elif depth == 0 and character in ",)":
            return i
        elif character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
        i += 1
    return None


def _value(written: str) -> Any:
    """A literal of Python or JSON; what is neither is text without quotes."""
    if written in _CONSTANTS:
        return _CONSTANTS[written]
    for read in (ast.literal_eval, json.loads):
        try:
            return read(written)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return written


# ---- comparing


def call_credit(written: Sequence[ToolCall], gold: Sequence[ToolCall]) -> float:
    """Right pieces over all pieces of either side, in [0, 1]; 1 only where the calls are the same.

    A call is one piece for its name and one for each argument. Calls are paired by name, those with most right
    pieces first, whatever their order. An argument of the right value and the wrong type ("3" for 3) is half a piece.
    """
    if not gold:
        return float(not written)
    right = _right_pieces(written, gold)
    return right / max(_union(written, gold), 1)


def finished_share(written: Sequence[ToolCall], gold: Sequence[ToolCall]) -> float | None:
    """Of the pieces written so far, the share that are right: the same measure for a text that goes on. None: none."""
    pieces = sum(1 + len(call.arguments) for call in written)
    if not pieces:
        return None
    return _right_pieces(written, gold) / pieces


def _right_pieces(written: Sequence[ToolCall], gold: Sequence[ToolCall]) -> float:
    """Calls of one name are paired, those with most right pieces first."""
    pairs = [
        (_right(mine, its), i, j)
        for i, mine in enumerate(written)
        for j, its in enumerate(gold)
        if mine.name == its.name
    ]
    total, taken, met = 0.0, set[int](), set[int]()
    for right, i, j in sorted(pairs, key=lambda pair: -pair[0]):
        if i not in taken and j not in met:
            taken.add(i)
            met.add(j)
            total += right
    return total


def _right(written: ToolCall, gold: ToolCall) -> float:
    return 1.0 + sum(
        _agreement(value, gold.arguments[key])
        for key, value in written.arguments.items()
        if key in gold.arguments
    )


def _agreement(written: Any, gold: Any) -> float:
    if _same(written, gold):
        return 1.0
    return 0.5 if str(written).strip() == str(gold).strip() else 0.0


def _same(written: Any, gold: Any) -> bool:
    """Equal values of equal types, inside lists and mappings too; 3 and 3.0 are one number, 1 and true are not."""
    if isinstance(written, list | tuple) and isinstance(gold, list | tuple):
        return len(written) == len(gold) and all(map(_same, written, gold))
    if isinstance(written, dict) and isinstance(gold, dict):
        return written.keys() == gold.keys() and all(_same(written[key], gold[key]) for key in gold)
    if isinstance(written, bool) != isinstance(gold, bool):
        return False
    numbers = isinstance(written, int | float) and isinstance(gold, int | float)
    return written == gold and (numbers or type(written) is type(gold))


def _union(written: Sequence[ToolCall], gold: Sequence[ToolCall]) -> int:
    """Pieces of either side, those of both counted once."""
    keys = [
        {(name, number, key) for name, number, call in _numbered(calls) for key in (None, *call.arguments)}
        for calls in (written, gold)
    ]
    return len(keys[0] | keys[1])


def _numbered(calls: Sequence[ToolCall]) -> Iterator[tuple[str, int, ToolCall]]:
    seen: dict[str, int] = {}
    for call in calls:
        seen[call.name] = seen.get(call.name, 0) + 1
        yield call.name, seen[call.name], call


def word_overlap(first: str, second: str) -> float:
    """Words of both over the words of the one with fewer, in [0, 1]; 0 where one has none. iTool's own measure."""
    left, right = set(_WORD.findall(first.lower())), set(_WORD.findall(second.lower()))
    return len(left & right) / min(len(left), len(right)) if left and right else 0.0
