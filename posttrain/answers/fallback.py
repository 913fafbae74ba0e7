"""What is not read here goes to math-verify.

It runs without its own timeouts, which use signals: call this in a process with a deadline.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache

MAX_FALLBACK_LENGTH = 300  # characters; beyond it math-verify's grammar takes seconds
MAX_DEPTH = 12  # brackets within brackets


def prepare() -> None:
    """Imports math-verify and sympy, so that the first hard answer does not pay for it."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    import math_verify  # noqa: F401  (sympy takes a second; most answers never need it)


@lru_cache(maxsize=4096)
def parsed_by_math_verify(text: str) -> tuple:
    """What math-verify makes of an expression: sympy objects, or () where it cannot read it."""
    if not text.strip() or len(text) > MAX_FALLBACK_LENGTH or _is_dangerous(text):
        return ()
    prepare()
    from math_verify import LatexExtractionConfig, parse

    found = parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=None)  # type: ignore[arg-type]  # None is documented
    return tuple(item for item in found if not isinstance(item, str))


def _is_dangerous(text: str) -> bool:
    """Towers of powers and large factorials, which sympy would write out digit by digit; deep nesting, which its
    grammar takes for ever to read; and numbers side by side, which it would join."""
    if re.search(
        r"\^\s*(?:\{[^{}]*\^|[\dA-Za-z]\s*\^)|\d{5,}\s*!|!\s*!|\^\s*\{?\s*\d{5,}|(?<![\^_\d])\d+\s+\d", text
    ):
        return True
    depth = deepest = 0
    for character in text:
        depth += (character in "({[") - (character in ")}]")
        deepest = max(deepest, depth)
    return deepest > MAX_DEPTH


@lru_cache(maxsize=16384)
def equal_by_math_verify(gold: str, answer: str) -> bool:
    if not parsed_by_math_verify(gold) or not parsed_by_math_verify(answer):
        return False
    from math_verify import verify

    return bool(
        verify(list(parsed_by_math_verify(gold)), list(parsed_by_math_verify(answer)), timeout_seconds=None)
    )
