"""Constants of integration: x^2 + c is x^2 + C."""

from __future__ import annotations

import re

from posttrain.answers.shape import Expr
from posttrain.answers.tree import Unreadable
from posttrain.answers.value import read_value


def formula(text: str) -> Expr:
    """A formula without a unit; its value is None where it has none here."""
    try:
        return Expr(text, read_value(text))
    except Unreadable:
        return Expr(text, None)


_CONSTANT = re.compile(r"(?:(?<=\+)|^)\s*([CcKk])\s*(?=[+-]|$)")
_INTEGRATED = frozenset("xyztuvwrs") | {r"\theta", r"\phi", r"\varphi", r"\tau", r"\rho"}
"""What one integrates over; n + C is no antiderivative."""


def same_constant(gold: Expr, answer: Expr) -> Expr:
    """The answer with its constant of integration called as the gold's is: x^2 + c for x^2 + C.

    One of the two has to say C: x + k and x + c are different as they stand.
    """
    ours, theirs = _constant(gold), _constant(answer)
    if ours is None or theirs is None or ours[1] == theirs[1] or "C" not in (ours[1], theirs[1]):
        return answer
    begin, letter = theirs
    return formula(answer.text[:begin] + ours[1] + answer.text[begin + len(letter) :])


def _constant(expr: Expr) -> tuple[int, str] | None:
    """Where an antiderivative's constant stands and its letter: a term by itself beside a function of x, in which
    neither such a letter nor another capital occurs (A + B + C has three parameters)."""
    found = [m for m in _CONSTANT.finditer(expr.text) if not _within_brackets(expr.text[: m.start()])]
    if len(found) != 1:
        return None
    begin, end = found[0].span(1)
    rest = formula(f"{expr.text[:begin]}0{expr.text[end:]}").value
    if rest is None or not rest.names & _INTEGRATED:
        return None
    return None if any(name in "Cck" or name[0].isupper() for name in rest.names) else (begin, found[0][1])


def _within_brackets(before: str) -> bool:
    return (
        any(before.count(o) != before.count(c) for o, c in ("()", "[]", "{}")) or before.count("|") % 2 == 1
    )
