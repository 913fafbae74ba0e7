"""What goes to the worker that holds tools and environments, and what comes back. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

End = Literal["done", "error", "timeout", "crash", "gone"]


@dataclass(frozen=True)
class Order:
    """One call.

    slot       the process that makes it: "tools", or one an environment
    act        "tool" calls a function; "open" begins an episode; "method" calls a tool of the environment, "score" its
               get_reward; "read" reads an attribute of it
    name       of the function, method or attribute
    timeout_s, max_characters  of this call
    seed       of Python's and NumPy's generators before an episode begins
    """

    slot: str
    act: Literal["tool", "open", "method", "score", "read"]
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = 10.0
    max_characters: int = 4000
    seed: int = 0


@dataclass(frozen=True)
class Reply:
    """
    end    "done"; "error": it raised; "timeout": it was ended; "crash": its process ended; "gone": the environment was
           ended before
    value  text of a tool; what "open" says to the model, or None; a number or None; an attribute's value
    cut    whether its text was longer than allowed
    said   where it is not done: what happened, a sentence
    detail where an episode could not begin or be judged: the traceback
    """

    end: End
    value: Any = None
    cut: bool = False
    said: str = ""
    detail: str = ""


def shortened(text: str, limit: int) -> tuple[str, bool]:
    """The text with at most `limit` characters of it, a sentence that says so behind them, and whether it was cut."""
    if len(text) <= limit:
        return text, False
    return f"{text[:limit]}\n[cut: {limit} of {len(text)} characters]", True
