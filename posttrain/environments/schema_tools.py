"""Functions that a model is shown, out of JSON schemas: tools of servers come as such.

TRL and transformers tell a model of a Python function by its signature and docstring; `described` makes one of each
schema that says the same.
"""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable, Mapping
from typing import Any, Literal

from posttrain.environments.tool_specs import ToolFault

_TYPES: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "array": list,
    "object": dict,
}


def described(
    name: str,
    description: str,
    schema: Mapping[str, Any],
    call: Callable[..., Any],
    *,
    told: Mapping[str, str] | None = None,
    left_out: tuple[str, ...] = (),
) -> Callable[..., Any]:
    """A method `name(self, ...)` with the parameters of an object's JSON schema, handed to `call(self, {...})`.

    told      what is said of a parameter, where the schema says nothing
    left_out  properties that the model is not shown; those with one possible value are filled in besides

    Raises ToolFault where a name is none of Python's.
    """
    properties = {key: _resolved(one, schema) for key, one in (schema.get("properties") or {}).items()}
    fixed = {key: one["const"] for key, one in properties.items() if "const" in one}
    shown = {key: one for key, one in properties.items() if key not in fixed and key not in left_out}
    for word in (name, *shown):
        if not word.isidentifier() or keyword.iskeyword(word):
            raise ToolFault(f"tool {name!r}: {word!r} is no name in Python, so a model cannot be told of it")
    required = set(schema.get("required") or ())

    def method(self: Any, **arguments: Any) -> Any:
        return call(self, {**fixed, **arguments})

    lines = [f"    {key}: {_said(key, one, told or {})}" for key, one in shown.items()]
    method.__name__ = method.__qualname__ = name
    first = " ".join(description.split()) or f"Calls {name}."
    method.__doc__ = first + ("\n\nArgs:\n" + "\n".join(lines) if lines else "")
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for key, one in sorted(shown.items(), key=lambda item: item[0] not in required):
        must = key in required
        kind = _hint(one) if must else _hint(one) | None
        default = inspect.Parameter.empty if must else one.get("default")
        parameters.append(
            inspect.Parameter(key, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind, default=default)
        )
    method.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # functions take attributes
    method.__annotations__ = {one.name: one.annotation for one in parameters[1:]}
    return method


def _resolved(one: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with its reference followed, and what is said beside the reference kept."""
    found = dict(one)
    seen: set[str] = set()
    while (at := found.pop("$ref", None)) is not None and at not in seen:
        seen.add(at)
        there: Any = whole
        for part in str(at).removeprefix("#/").split("/"):
            there = there.get(part, {}) if isinstance(there, Mapping) else {}
        found = {**there, **found}
    choices = [part for part in found.get("anyOf") or () if part.get("type") != "null"]
    if len(choices) == 1:  # a value or none
        found = {**_resolved(choices[0], whole), **{k: v for k, v in found.items() if k != "anyOf"}}
    return found


def _hint(one: Mapping[str, Any]) -> Any:
    if options := one.get("enum"):
        return Literal[tuple(options)]  # type: ignore[valid-type]  # made as the server says
    kind = one.get("type")
    return _TYPES.get(kind, Any) if isinstance(kind, str) else Any


def _said(key: str, one: Mapping[str, Any], told: Mapping[str, str]) -> str:
    text = one.get("description") or told.get(key) or one.get("title") or key
    return " ".join(str(text).split())
