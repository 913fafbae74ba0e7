"""Types of settings in words, as a recipe's author thinks of them."""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import Strict

_WORDS = {
    float: "number",
    int: "whole number",
    bool: "true or false",
    str: "text",
    type(None): "null",
    Any: "any",
}


def spell_type(annotation: Any) -> str:
    """A type as a recipe's author thinks of it: "number >= 0, < 1 or null"."""
    outer, inner = get_origin(annotation), get_args(annotation)
    if outer is Annotated:
        bounds = [spell_bound(mark) for mark in inner[1:] if not isinstance(mark, Strict)]
        return f"{spell_type(inner[0])} {', '.join(bounds)}".rstrip()
    if outer is Literal:
        return ", ".join(map(str, inner))
    if outer in (UnionType, Union):
        return " or ".join(spell_type(member) for member in inner)
    if outer is tuple:
        return f"[{', '.join(spell_type(member) for member in inner)}]"
    if outer in (list, dict) or annotation in (list, dict):
        return "list" if list in (outer, annotation) else "mapping"
    return _WORDS[annotation]


def spell_bound(mark: Any) -> str:
    match mark:
        case Gt(gt=limit):
            return f"> {limit}"
        case Ge(ge=limit):
            return f">= {limit}"
        case Lt(lt=limit):
            return f"< {limit}"
        case Le(le=limit):
            return f"<= {limit}"
    return str(mark)
