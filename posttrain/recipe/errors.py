"""What is wrong with a recipe, said in one line a fault: where, what, what to write instead."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import ValidationError

Place = tuple[str | int, ...]
"""Keys and list positions from the section down to the faulty value."""
Unknown = Callable[[Place], str]
"""Says what is wrong with an unknown key."""


class RecipeError(ValueError):
    """A recipe that cannot run: one line a problem, "file: section: message"."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


SHORT = 5
"""Words of up to this many letters are near each other by accident: 'ppo' is no typo of 'seppo'."""


def suggest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'clip_high'?", or nothing where no known word is near enough to be meant."""
    known = sorted(known)
    same = [name for name in known if _bare(name) == _bare(word)]
    if same:
        near = same[:1]
    elif len(word) <= SHORT:
        near = [name for name in known if name[:1] == word[:1] and one_slip_apart(word, name)]
    else:
        near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(name) for name in near[:3])}?" if near else ""


def _bare(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def one_slip_apart(one: str, other: str) -> bool:
    """Whether one letter was added, left out or mistaken, or two neighbours stand in each other's place."""
    shorter, longer = sorted((one, other), key=len)
    same = next((i for i, (a, b) in enumerate(zip(shorter, longer, strict=False)) if a != b), len(shorter))
    if len(shorter) == len(longer):
        swapped = shorter[same : same + 2] == longer[same : same + 2][::-1]
        return shorter[same + 1 :] == longer[same + 1 :] or (
            swapped and shorter[same + 2 :] == longer[same + 2 :]
        )
    return shorter[same:] == longer[same + 1 :]  # of a length only where one letter is more


def spell(place: Place) -> str:
    """model.peft, rewards[0].args"""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def explain(error: ValidationError, section: str, data: Any, unknown: Unknown) -> list[str]:
    """The faults pydantic found in `data`, as "section.part: message" without repetition."""
    faults: dict[Place, list[dict[str, Any]]] = {}
    for fault in error.errors(include_url=False):
        faults.setdefault(_place(fault, data), []).append(dict(fault))
    return [
        _line(section, place, found, unknown)
        for place, found in faults.items()
        if not (_of_another_member(found) and any(_below(place, other) for other in faults))
    ]


def _of_another_member(found: list[dict[str, Any]]) -> bool:
    """Faults of a union's member that is one word: said of a list only where nothing in the list is at fault."""
    return all(fault["type"] == "literal_error" and not isinstance(fault["input"], str) for fault in found)


def _below(place: Place, other: Place) -> bool:
    return len(other) > len(place) and other[: len(place)] == place


def _place(fault: Any, data: Any) -> Place:
    """`loc` without the names pydantic gives to the members of a union."""
    place: list[str | int] = []
    for position, part in enumerate(fault["loc"]):
        last = position == len(fault["loc"]) - 1
        if isinstance(data, dict) and part in data or isinstance(data, list) and isinstance(part, int):
            place.append(part)
            data = data[part] if isinstance(data, dict) or part < len(data) else None
        elif last and fault["type"] == "missing":
            place.append(part)
    return tuple(place)


def _line(section: str, place: Place, faults: list[dict[str, Any]], unknown: Unknown) -> str:
    first = faults[0]
    kind = first["type"]
    if kind == "value_error":
        return f"{spell((section, *place))}: {first['ctx']['error']}"
    depth = max((i for i, part in enumerate(place) if isinstance(part, str)), default=-1)
    where = spell((section, *place[: max(depth, 0)]))
    key = spell(place[depth:]) if depth >= 0 else ""
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where}: {unknown(place)}"
    if kind == "missing" and isinstance(place[-1], str):
        return f"{where}: key {key!r} is missing"
    wanted = " or ".join(dict.fromkeys(_wanted(fault) for fault in faults))
    hint = _literal_hint(faults)
    if kind == "missing":
        return f"{where}: {spell(place[depth:-1])!r} holds too few values"
    subject = f"{key!r} must be" if key else "must be"
    return f"{where}: {subject} {wanted}, not {show(first['input'])}{hint}"


def _wanted(fault: dict[str, Any]) -> str:
    kind, limits = fault["type"], fault.get("ctx", {})
    if kind == "literal_error":
        return "one of " + limits["expected"].replace("'", "").replace(" or ", ", ")
    if kind == "string_too_short":
        return "text that is not empty"
    bounds = {
        "greater_than": "greater than {gt:g}",
        "greater_than_equal": "at least {ge:g}",
        "less_than": "less than {lt:g}",
        "less_than_equal": "at most {le:g}",
        "too_long": "at most {max_length} values",
        "too_short": "at least {min_length} values",
    }
    if kind in bounds:
        text = bounds[kind].format(**limits)
        return text.removesuffix("s") if text.endswith(" 1 values") else text
    plain = {
        "float_type": "a number",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "bool_type": "true or false",
        "string_type": "text",
        "list_type": "a list",
        "tuple_type": "a list",
        "dict_type": "a mapping (key: value)",
        "dataclass_type": "a mapping (key: value)",
        "model_type": "a mapping (key: value)",
        "model_attributes_type": "a mapping (key: value)",
        "finite_number": "finite",
        "none_required": "null",
    }
    return plain.get(kind, str(fault["msg"]))


def _literal_hint(faults: list[dict[str, Any]]) -> str:
    for fault in faults:
        if fault["type"] == "literal_error" and isinstance(fault["input"], str):
            known = fault["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
            return suggest(fault["input"], known)
    return ""


def show(value: Any) -> str:
    """A value as a message names it, in one line."""
    if value is None:
        return "null"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
