"""One spelling for equal answers, to count distinct ones."""

from __future__ import annotations

import re

from posttrain.answers.compare import canonical_value
from posttrain.answers.reading import read_shape
from posttrain.answers.shape import (
    Either,
    Equation,
    Expr,
    Inequality,
    Matrix,
    Named,
    Ratio,
    Region,
    Several,
    Shape,
    Words,
    merged,
)


def canonical(answer: str) -> str | None:
    """A string that equal answers share, for counting distinct answers. None for an empty answer."""
    return _canonical(read_shape(answer)) if answer.strip() else None


def _canonical(shape: Shape) -> str:
    if isinstance(shape, Either):
        return _canonical(shape.options[0])
    if isinstance(shape, Named):
        return _canonical(shape.inner)
    if isinstance(shape, Equation):
        return f"{_canonical(shape.left)}={_canonical(shape.right)}"
    if isinstance(shape, Words):
        return shape.text
    if isinstance(shape, Ratio):
        return ":".join(map(_canonical, shape.terms))
    if isinstance(shape, Inequality):
        return re.sub(r"\s+", "", shape.text)
    if isinstance(shape, Matrix):
        return "[" + ";".join(",".join(map(_canonical, row)) for row in shape.rows) + "]"
    if isinstance(shape, Region):
        return " u ".join(
            f"{'(' if p.low_open else '['}{_canonical(p.low)},{_canonical(p.high)}{')' if p.high_open else ']'}"
            for p in merged(shape.pieces)
        )
    if isinstance(shape, Several):
        if shape.number is not None:
            return _canonical(shape.number)
        items = [_canonical(item) for item in shape.items]
        if shape.kind in ("tuple", "bracket"):
            return f"({','.join(items)})" if shape.kind == "tuple" else f"[{','.join(items)}]"
        return "{" + ",".join(sorted(items)) + "}" if len(items) != 1 else items[0]
    return _canonical_expression(shape)


def _canonical_expression(expr: Expr) -> str:
    plain = re.sub(r"\s+", "", expr.text)
    if expr.base:
        return plain.replace("{", "").replace("}", "")
    if len(plain) == 1 and plain.isalpha():
        return plain.lower()  # a choice's letter, as Words has it
    text = (canonical_value(expr.value) if expr.value is not None else None) or plain
    return text + ("%" if expr.percent else "")
