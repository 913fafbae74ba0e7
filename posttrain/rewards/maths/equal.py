"""Whether two answers are the same.

Numbers and expressions that `value.py` can evaluate are compared here, exactly; whatever it cannot read is handed to
math-verify. math-verify runs without its own timeouts (they use signals): call this in a process with a deadline.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache

from posttrain.rewards.maths.notation import Unit, balanced, tidy
from posttrain.rewards.maths.shape import (
    Either,
    Equation,
    Expr,
    Group,
    Matrix,
    Named,
    Piece,
    Ratio,
    Region,
    Shape,
    Words,
    as_region,
    bound,
    read_shape,
)
from posttrain.rewards.maths.value import (
    Unreadable,
    Value,
    canonical_value,
    read_value,
    number_of,
    real_of,
    same_curve,
    same_value,
)

MAX_FALLBACK_LENGTH = 300  # characters; beyond it math-verify's grammar takes seconds


@lru_cache(maxsize=65536)
def equal_answers(gold: str, answer: str, rel_tol: float = 0.0, abs_tol: float = 0.0) -> bool:
    """Whether `answer` is the same as `gold`, both in LaTeX or plain writing, without \\boxed.

    `rel_tol` and `abs_tol` widen the comparison of numbers, for golds that are measurements.
    """
    if _squeezed(gold) == _squeezed(answer):
        return True
    if not balanced(answer):
        return False
    return _Comparison(rel_tol, abs_tol).same(read_shape(gold), read_shape(answer))


def readable(gold: str) -> bool:
    """Whether a gold answer can be compared with anything: its shape is read here or by math-verify."""
    if not balanced(gold) or not re.search(r"[0-9A-Za-z]|\\emptyset|\\\{\s*\\\}|∅|∞|π", gold):
        return False
    return all(_readable_leaf(leaf) for leaf in _leaves(read_shape(gold)))


def canonical(answer: str) -> str | None:
    """A string that equal answers share, for counting distinct answers. None for an empty answer."""
    return _canonical(read_shape(answer)) if answer.strip() else None


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", "", tidy(text))


class _Comparison:
    def __init__(self, rel_tol: float, abs_tol: float):
        self.rel_tol, self.abs_tol = rel_tol, abs_tol

    def same(self, gold: Shape, answer: Shape) -> bool:
        if isinstance(gold, Either):
            return any(self.same(option, answer) for option in gold.options)
        if isinstance(answer, Either):
            return any(self.same(gold, option) for option in answer.options)
        if isinstance(gold, Named | Equation) or isinstance(answer, Named | Equation):
            return self.equations(gold, answer)
        if isinstance(gold, Words) or isinstance(answer, Words):
            return _words_of(gold) == _words_of(answer) is not None
        if isinstance(gold, Ratio) or isinstance(answer, Ratio):
            return self.ratios(gold, answer)
        if isinstance(gold, Matrix) or isinstance(answer, Matrix):
            return self.matrices(gold, answer)
        if isinstance(gold, Region) or isinstance(answer, Region):
            return self.regions(as_region(gold), as_region(answer))
        if isinstance(gold, Group) or isinstance(answer, Group):
            return self.groups(gold, answer)
        return isinstance(gold, Expr) and isinstance(answer, Expr) and self.expressions(gold, answer)

    # ---- equations and names

    def equations(self, gold: Shape, answer: Shape) -> bool:
        if isinstance(gold, Named) and isinstance(answer, Named):
            if _same_name(gold.name, answer.name):
                return self.same(gold.inner, answer.inner)
            if "(" in gold.name and "(" in answer.name:
                return self.functions(gold, answer)
            return self.proportional(gold, answer)
        if isinstance(gold, Named):
            return (
                self.proportional(gold, answer)
                if isinstance(answer, Equation)
                else self.same(gold.inner, answer)
            )
        if isinstance(gold, Equation):
            return isinstance(answer, Named | Equation) and self.proportional(gold, answer)
        if isinstance(answer, Named):
            return self.same(gold, answer.inner)
        return isinstance(answer, Equation) and self.same(gold, answer.right)

    def functions(self, gold: Named, answer: Named) -> bool:
        """f(x) = 2x and f(t) = 2t name the same function."""
        before, after = _argument(answer.name), _argument(gold.name)
        if before is None or after is None or not isinstance(answer.inner, Expr):
            return False
        renamed = re.sub(
            rf"(?<![A-Za-z\\]){re.escape(before)}(?![A-Za-z])", lambda _: after, answer.inner.text
        )
        return self.same(gold.inner, read_shape(renamed))

    def proportional(self, gold: Shape, answer: Shape) -> bool:
        """Whether two equations describe one line or curve."""
        first, second = _difference(gold), _difference(answer)
        if first is None or second is None:
            return _ask_math_verify(_source(gold), _source(answer))
        return same_curve(first, second)

    # ---- several answers

    def groups(self, gold: Shape, answer: Shape) -> bool:
        gold, answer = _one_number(gold, answer), _one_number(answer, gold)
        if not isinstance(gold, Group) or not isinstance(answer, Group):
            group, other = (gold, answer) if isinstance(gold, Group) else (answer, gold)
            if not isinstance(group, Group):
                return self.same(gold, answer)
            return (
                group.kind in ("set", "list") and len(group.items) == 1 and self.same(group.items[0], other)
            )
        kinds = {gold.kind, answer.kind}
        if "set" in kinds and kinds <= {"set", "list"}:
            return self.covers(gold, answer) and self.covers(answer, gold)
        if len(gold.items) != len(answer.items):
            return False
        ordered = all(self.same(g, a) for g, a in zip(gold.items, answer.items, strict=True))
        if kinds & {"tuple", "bracket"}:
            if len(gold.items) == 2 and kinds == {"tuple", "bracket"}:
                return False  # (1, 2) and [1, 2] are two intervals
            return "set" not in kinds and ordered
        if _distinctly_named(gold) != _distinctly_named(answer):
            return ordered  # x = 1, y = 2 against 1, 2
        return ordered or self.matching(list(gold.items), list(answer.items))

    def covers(self, first: Group, second: Group) -> bool:
        return all(any(self.same(b, a) for b in second.items) for a in first.items)

    def matching(self, golds: list[Shape], answers: list[Shape]) -> bool:
        """Whether the items can be paired off in some order."""
        if not golds:
            return True
        for position, answer in enumerate(answers):
            if self.same(golds[0], answer):
                return self.matching(golds[1:], answers[:position] + answers[position + 1 :])
        return False

    def matrices(self, gold: Shape, answer: Shape) -> bool:
        if isinstance(gold, Matrix) and isinstance(answer, Matrix):
            return [len(row) for row in gold.rows] == [len(row) for row in answer.rows] and all(
                self.same(g, a)
                for g_row, a_row in zip(gold.rows, answer.rows, strict=True)
                for g, a in zip(g_row, a_row, strict=True)
            )
        matrix, other = (gold, answer) if isinstance(gold, Matrix) else (answer, gold)
        if not isinstance(matrix, Matrix):
            return False
        cells = [cell for row in matrix.rows for cell in row]
        if len(cells) == 1:
            return self.same(cells[0], other)
        vector = len(matrix.rows) == 1 or all(len(row) == 1 for row in matrix.rows)
        if not vector or not isinstance(other, Group) or other.kind not in ("tuple", "bracket"):
            return False
        return len(cells) == len(other.items) and all(map(self.same, cells, other.items))

    def ratios(self, gold: Shape, answer: Shape) -> bool:
        if isinstance(gold, Ratio) and isinstance(answer, Ratio):
            first, second = gold.terms, answer.terms
            return len(first) == len(second) and all(
                self.products(first[0], second[k], second[0], first[k]) for k in range(1, len(first))
            )
        ratio, other = (gold, answer) if isinstance(gold, Ratio) else (answer, gold)
        if not isinstance(ratio, Ratio) or not isinstance(other, Expr) or len(ratio.terms) != 2:
            return False
        return self.expressions(_expr(f"({ratio.terms[0].text})/({ratio.terms[1].text})"), other)

    def products(self, a: Expr, b: Expr, c: Expr, d: Expr) -> bool:
        return self.expressions(_expr(f"({a.text})({b.text})"), _expr(f"({c.text})({d.text})"))

    # ---- regions

    def regions(self, gold: Region | None, answer: Region | None) -> bool:
        if gold is None or answer is None:
            return False
        if gold.name and answer.name and not _same_name(gold.name, answer.name):
            return False
        first, second = _merged(gold.pieces), _merged(answer.pieces)
        return len(first) == len(second) and all(
            g.low_open == a.low_open
            and g.high_open == a.high_open
            and self.expressions(g.low, a.low)
            and self.expressions(g.high, a.high)
            for g, a in zip(first, second, strict=True)
        )

    # ---- numbers and expressions

    def expressions(self, gold: Expr, answer: Expr) -> bool:
        if gold.base or answer.base:
            if gold.base and answer.base and gold.base != answer.base:
                return False
            if answer.base and not gold.base and gold.value is not None:
                return _in_base(answer) is not None and _in_base(answer) == number_of(gold.value)
            digits = [expr.text.partition("_")[0] if expr.base else expr.text for expr in (gold, answer)]
            return digits[0].strip() == digits[1].strip()
        if not _same_dimension(gold.unit, answer.unit):
            return False
        if gold.value is None or answer.value is None:
            return _squeezed(gold.text) == _squeezed(answer.text) or _ask_math_verify(gold.text, answer.text)
        if gold.digits or answer.digits:  # 0.333... stands for whatever begins so
            places = min(expr.digits for expr in (gold, answer) if expr.digits)
            return bool(same_value(gold.value, answer.value, abs_tol=10.0**-places))
        if gold.percent != answer.percent:
            return self.percentages(gold, answer)
        if gold.unit and answer.unit and gold.unit != answer.unit and gold.unit.factor and answer.unit.factor:
            factor = answer.unit.factor / gold.unit.factor
            answer = _expr(f"({answer.text})\\cdot\\frac{{{factor.numerator}}}{{{factor.denominator}}}")
        assert gold.value is not None and answer.value is not None
        verdict = same_value(gold.value, answer.value, self.rel_tol, self.abs_tol)
        if verdict is None:
            return gold.value.tree == answer.value.tree
        return verdict

    def percentages(self, gold: Expr, answer: Expr) -> bool:
        """50% is 0.5; and where one side leaves the sign out, 50. A number below 1 has to be the fraction."""
        plain, percent = (answer, gold) if gold.percent else (gold, answer)
        if plain.value is None or percent.value is None:
            return False
        if same_value(
            _expr(f"({percent.text})/100").value or percent.value, plain.value, self.rel_tol, self.abs_tol
        ):
            return True
        number = real_of(plain.value)
        large = number is not None and abs(number) >= 1
        return bool(large and same_value(percent.value, plain.value, self.rel_tol, self.abs_tol))


# ---- small questions --------------------------------------------------------------------------------------------


def _expr(text: str) -> Expr:
    try:
        return Expr(text, read_value(text))
    except Unreadable:
        return Expr(text, None)


def _in_base(expr: Expr) -> int | None:
    """The whole number that digits with a base stand for."""
    digits, base = expr.text.partition("_")[0].strip(), expr.base
    try:
        return int(digits, int(base))
    except ValueError:  # a digit that the base does not have, or a base beyond 36
        return None


def _words_of(shape: Shape) -> str | None:
    if isinstance(shape, Words):
        return shape.text
    if isinstance(shape, Expr):
        letters = re.sub(r"[\s()]", "", shape.text)
        return letters.lower() if letters.isalpha() else None
    return None


def _same_name(a: str, b: str) -> bool:
    a, b = (re.sub(r"[\s{}]", "", name) for name in (a, b))
    return a == b or {a.partition("(")[0], b.partition("(")[0]} == {"y", "f"} and "(" in a + b


def _argument(name: str) -> str | None:
    match = re.search(r"\(([^(),]+)\)$", name)
    return match[1].strip() if match else None


def _one_number(shape: Shape, other: Shape) -> Shape:
    """ "100,200" is one number, unless the other side is a list beyond doubt."""
    if isinstance(shape, Group) and shape.number is not None:
        listed = isinstance(other, Group) and other.number is None
        return shape if listed else shape.number
    return shape


def _distinctly_named(group: Group) -> bool:
    names = {item.name for item in group.items if isinstance(item, Named)}
    return len(names) == len(group.items) > 1


def _same_dimension(a: Unit | None, b: Unit | None) -> bool:
    return a is None or b is None or a.dimension is None or b.dimension is None or a.dimension == b.dimension


def _merged(pieces: tuple[Piece, ...]) -> list[Piece]:
    """Pieces from left to right, those that touch joined; as they stand where an end is no number."""
    ends = [(bound(piece.low), bound(piece.high)) for piece in pieces]
    if any(low is None or high is None for low, high in ends):
        return list(pieces)
    order = sorted(range(len(pieces)), key=lambda k: (ends[k][0], pieces[k].low_open))
    result: list[Piece] = []
    for piece in (pieces[k] for k in order):
        if result:
            last = result[-1]
            gap = bound(piece.low) - bound(last.high)
            if gap < 0 or gap == 0 and not (piece.low_open and last.high_open):
                further = bound(piece.high) - bound(last.high)
                high, is_open = (piece.high, piece.high_open) if further > 0 else (last.high, last.high_open)
                if further == 0:
                    is_open = piece.high_open and last.high_open
                result[-1] = Piece(last.low, high, last.low_open, is_open)
                continue
        result.append(piece)
    return result


def _difference(shape: Shape) -> Value | None:
    if isinstance(shape, Named) and isinstance(shape.inner, Expr):
        left, right = re.sub(r"^([A-Za-z])\((\w)\)$", r"\1", shape.name), shape.inner
        return _expr(f"({left})-({right.text})").value if right.value is not None else None
    if isinstance(shape, Equation) and isinstance(shape.left, Expr) and isinstance(shape.right, Expr):
        return _expr(f"({shape.left.text})-({shape.right.text})").value
    return None


def _source(shape: Shape) -> str:
    if isinstance(shape, Named):
        return f"{shape.name}={_source(shape.inner)}"
    if isinstance(shape, Equation | Expr):
        return shape.text
    return ""


# ---- canonical strings ------------------------------------------------------------------------------------------


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
    if isinstance(shape, Matrix):
        return "[" + ";".join(",".join(map(_canonical, row)) for row in shape.rows) + "]"
    if isinstance(shape, Region):
        return " u ".join(
            f"{'(' if p.low_open else '['}{_canonical(p.low)},{_canonical(p.high)}{')' if p.high_open else ']'}"
            for p in _merged(shape.pieces)
        )
    if isinstance(shape, Group):
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


# ---- math-verify ------------------------------------------------------------------------------------------------


def prepare() -> None:
    """Imports math-verify and sympy, so that the first hard answer does not pay for it."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    import math_verify  # noqa: F401  (sympy takes a second; most answers never need it)


def _leaves(shape: Shape) -> list[Shape]:
    if isinstance(shape, Either):
        return [leaf for option in shape.options for leaf in _leaves(option)]
    if isinstance(shape, Named):
        return _leaves(shape.inner)
    if isinstance(shape, Group):
        return [leaf for item in shape.items for leaf in _leaves(item)]
    if isinstance(shape, Matrix):
        return [leaf for row in shape.rows for cell in row for leaf in _leaves(cell)]
    if isinstance(shape, Region):
        return [end for piece in shape.pieces for end in (piece.low, piece.high)]
    if isinstance(shape, Ratio):
        return list(shape.terms)
    return [shape]


def _readable_leaf(shape: Shape) -> bool:
    if isinstance(shape, Words):
        return bool(re.search(r"\w", shape.text))
    if isinstance(shape, Equation):
        return True
    if isinstance(shape, Expr) and shape.value is None:
        return bool(_parsed(shape.text))
    return True


@lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple:
    """What math-verify makes of an expression: sympy objects, or () where it cannot read it."""
    if not text.strip() or len(text) > MAX_FALLBACK_LENGTH or _too_large(text):
        return ()
    prepare()
    from math_verify import LatexExtractionConfig, parse

    found = parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=None)  # type: ignore[arg-type]  # None is documented
    return tuple(item for item in found if not isinstance(item, str))


def _too_large(text: str) -> bool:
    """Towers of powers and factorials of large numbers, which sympy would write out digit by digit."""
    return bool(re.search(r"\^\s*\{?[^{}]*\^|\d{5,}\s*!|!\s*!|\^\s*\{?\s*\d{5,}", text))


@lru_cache(maxsize=16384)
def _ask_math_verify(gold: str, answer: str) -> bool:
    if not _parsed(gold) or not _parsed(answer):
        return False
    from math_verify import verify

    return bool(verify(list(_parsed(gold)), list(_parsed(answer)), timeout_seconds=None))
