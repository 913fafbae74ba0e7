"""Whether the two sides of one answer agree: 100 cm = 1 m, \\frac13 \\approx 0.33.

Sides that agree are two writings of one answer, and either may be compared with the gold. Sides that do not are two
guesses, of which only the last counts: otherwise "1 cm = 7 cm" would be right whatever of the two is asked for.
"""

from __future__ import annotations

import re

from posttrain.answers.compare import agree, real_of
from posttrain.answers.shape import Either, Expr, Named, Several, Shape
from posttrain.answers.value import Number, lift, mp

_DECIMAL = re.compile(
    r"[-+(\s]*(\d*)(?:\.(\d+))?[)\s]*(?:(?:\\times|\\cdot|\*)\s*10+\s*(?:\^\s*\{?\s*[-+]?\d+\s*\}?)?|[eE][-+]?\d+)?"
)


def converted(left: Expr, right: Expr) -> bool:
    """Whether two quantities of one dimension are the same, the units being different ones perhaps rounded."""
    if left.unit is None or right.unit is None or left.unit.dimension is None:
        return False
    if left.unit.dimension != right.unit.dimension:
        return False
    if left.unit != right.unit and rounded(left, right):
        return True
    first, second = _size(left), _size(right)
    return first is not None and second is not None and agree(first, second, _inexact(left, right))


def rounded(left: Shape, right: Shape) -> bool:
    """Whether one side is the other cut off or rounded at its last decimal; of tuples and lists, item by item."""
    left, right = _innermost(left), _innermost(right)
    if isinstance(left, Several) and isinstance(right, Several):
        return len(left.items) == len(right.items) and all(map(rounded, left.items, right.items))
    if not isinstance(left, Expr) or not isinstance(right, Expr):
        return False
    first, second = _size(left), _size(right)
    if first is None or second is None:
        return False
    if left.unit and right.unit and left.unit.dimension != right.unit.dimension:
        return False
    return (
        agree(first, second, _inexact(left, right))
        or _cut_off(first, second, right)
        or _cut_off(second, first, left)
    )


def _cut_off(exact: Number, short: Number, writing: Expr) -> bool:
    """Whether `short`, written so, is `exact` to its last decimal, and no further off than 5%, a whole number 1%."""
    figures = _DECIMAL.fullmatch(writing.text)
    if figures is None or short == 0:
        return False
    mantissa, decimals = mp.mpf(f"{figures[1] or 0}.{figures[2] or 0}"), len(figures[2] or "")
    if not mantissa:
        return False
    last = abs(short) / mantissa * mp.mpf(10) ** -decimals  # what 1 in the last place is worth
    off, allowed = abs(exact - short), abs(exact) * (0.05 if decimals else 0.01)
    whole = abs(exact) > abs(short) and exact * short > 0  # cut off, not rounded
    return bool(off <= allowed and (off <= last / 2 or whole and off < last))


def _size(expr: Expr) -> Number | None:
    """The number in base units, of a percentage the share; None for an expression with variables."""
    number = real_of(expr.value) if expr.value is not None and not expr.base else None
    if number is None:
        return None
    if expr.percent:
        return number / 100
    return number * lift(expr.unit.factor) if expr.unit and expr.unit.factor else number


def _inexact(left: Expr, right: Expr) -> bool:
    return any(side.value is not None and side.value.inexact for side in (left, right))


def _innermost(shape: Shape) -> Shape:
    """The answer without its names; of two writings, which agree, the last."""
    while isinstance(shape, Named | Either):
        shape = shape.inner if isinstance(shape, Named) else shape.options[-1]
    return shape
