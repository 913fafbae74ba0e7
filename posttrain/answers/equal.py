"""Whether two answers are the same.

Numbers and expressions that can be evaluated are compared exactly. Parts that have no value here go to math-verify, and
so do whole answers that differ as read here, where their difference is not certain (second_opinion.py). It may take
arbitrarily long, so call this in a process with a deadline.
"""

from __future__ import annotations

import re
from functools import lru_cache

from posttrain.answers.antiderivative import formula, same_constant
from posttrain.answers.clock import clock_of, is_clock, same_clock
from posttrain.answers.compare import number_of, real_of, same_curve, same_value
from posttrain.answers.expression import with_short_unit
from posttrain.answers.fallback import parsed_by_math_verify
from posttrain.answers.inequalities import inequality_is_region, same_inequality
from posttrain.answers.notation import balanced, tidy
from posttrain.answers.reading import read_shape
from posttrain.answers.second_opinion import agreed_by_math_verify, equal_expressions
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
    as_region,
    leaves,
    merged,
)
from posttrain.answers.units import Unit
from posttrain.answers.value import Value


def readable(gold: str) -> bool:
    """Whether a gold answer can be compared with anything: its shape is read here or by math-verify."""
    if not balanced(gold) or not re.search(r"\w|\\\{\s*\\\}", tidy(gold)):
        return False
    return all(_readable_leaf(leaf) for leaf in leaves(read_shape(gold)))


def _readable_leaf(shape: Shape) -> bool:
    if isinstance(shape, Words):
        return bool(re.search(r"\w", shape.text))
    if isinstance(shape, Equation):
        return True
    if isinstance(shape, Expr) and shape.value is None:
        return _is_notation(shape.text) or bool(parsed_by_math_verify(shape.text))
    return True


def _is_notation(text: str) -> bool:
    """Whether a formula that has no value here is whole all the same, and may be compared by its looks: A \\cup B."""
    rest = re.sub(r"\\text\s*\{[^{}]*\}|\\[A-Za-z]+", " ", text)
    if re.search(r"[A-Za-z]*[a-z][A-Za-z]*[a-z][A-Za-z]*[a-z]|[?#@&]", rest) or re.search(
        r"[-+*/=^_]\s*$|\{\s*\}", text
    ):
        return False
    return bool(re.search(r"[A-Za-z\d]", rest))


@lru_cache(maxsize=65536)
def equal_answers(
    gold: str, answer: str, rel_tol: float = 0.0, abs_tol: float = 0.0, number_words: bool = False
) -> bool:
    """Whether `answer` is the same as `gold`, both in LaTeX or plain writing, without \\boxed.

    `rel_tol` and `abs_tol` widen the comparison of numbers, for golds that are measurements. `number_words`: whether
    "forty-two" is 42.
    """
    if _squeezed(gold) == _squeezed(answer):
        return True
    if not balanced(answer):
        return False
    first, second = read_shape(gold), read_shape(answer)
    if _Comparison(rel_tol, abs_tol, number_words).same(first, second):
        return True
    return agreed_by_math_verify(gold, answer, first, second)


def _squeezed(text: str) -> str:
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", tidy(text))  # "7 2" is not "72"


class _Comparison:
    def __init__(self, rel_tol: float, abs_tol: float, number_words: bool):
        self.rel_tol, self.abs_tol, self.number_words = rel_tol, abs_tol, number_words

    def same(self, gold: Shape, answer: Shape) -> bool:
        if isinstance(gold, Either) and isinstance(answer, Either):
            letters = gold.options[0], answer.options[0]
            if isinstance(letters[0], Words) and isinstance(letters[1], Words):
                return letters[0] == letters[1]  # (E) 12 is not (D) 12
        if isinstance(gold, Either):
            return any(self.same(option, answer) for option in gold.options)
        if isinstance(answer, Either):
            return any(self.same(gold, option) for option in answer.options)
        if isinstance(gold, Named | Equation) or isinstance(answer, Named | Equation):
            return self.equations(gold, answer)
        if isinstance(gold, Words) or isinstance(answer, Words):
            if self.number_words and isinstance(gold, Words | Expr) and isinstance(answer, Words | Expr):
                gold, answer = _spelt_out(gold), _spelt_out(answer)
                if isinstance(gold, Expr) and isinstance(answer, Expr):
                    return self.expressions(gold, answer)
            if isinstance(gold, Ratio) or isinstance(answer, Ratio):
                return same_clock(clock_of(gold), clock_of(answer), half_days=isinstance(answer, Words))
            return _words_of(gold) == _words_of(answer) is not None
        if isinstance(gold, Ratio) or isinstance(answer, Ratio):
            return self.ratios(gold, answer)
        if isinstance(gold, Matrix) or isinstance(answer, Matrix):
            return self.matrices(gold, answer)
        if isinstance(gold, Inequality) or isinstance(answer, Inequality):
            return self.inequalities(gold, answer)
        if isinstance(gold, Region) or isinstance(answer, Region):
            return self.regions(as_region(gold), as_region(answer))
        if isinstance(gold, Several) or isinstance(answer, Several):
            return self.groups(gold, answer)
        return isinstance(gold, Expr) and isinstance(answer, Expr) and self.expressions(gold, answer)

    # ---- equations and names

    def equations(self, gold: Shape, answer: Shape) -> bool:
        gold, answer = _named_entries(gold, answer), _named_entries(answer, gold)
        if isinstance(gold, Named) and isinstance(answer, Named):
            if _same_name(gold.name, answer.name):
                return self.same(gold.inner, answer.inner)
            if _argument(gold.name) and _argument(answer.name):
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
        return isinstance(answer, Equation) and not _unsolved(answer) and self.same(gold, answer.right)

    def functions(self, gold: Named, answer: Named) -> bool:
        """f(x) = 2x and f(t) = 2t name the same function."""
        before, after = _argument(answer.name), _argument(gold.name)
        if before is None or after is None or not isinstance(answer.inner, Expr):
            return False
        if "_" in gold.name + answer.name and gold.name[0] != answer.name[0]:
            return False  # a_n is not b_n
        renamed = re.sub(
            rf"(?<![A-Za-z\\]){re.escape(before)}(?![A-Za-z])", lambda _: after, answer.inner.text
        )
        return self.same(gold.inner, read_shape(renamed))

    def proportional(self, gold: Shape, answer: Shape) -> bool:
        """Whether two equations describe one line or curve."""
        first, second = _difference(gold), _difference(answer)
        if first is None or second is None:
            return equal_expressions(_source(gold), _source(answer))
        return same_curve(first, second)

    # ---- several answers

    def groups(self, gold: Shape, answer: Shape) -> bool:
        gold, answer = _one_number(gold, answer), _one_number(answer, gold)
        if not isinstance(gold, Several) or not isinstance(answer, Several):
            group, other = (gold, answer) if isinstance(gold, Several) else (answer, gold)
            if not isinstance(group, Several):
                return self.same(gold, answer)
            if _distinctly_named(group):
                return False  # angle A = 90, angle B = 90: two answers
            alike = group.kind == "list" or group.kind == "set" and len(group.items) == 1
            return alike and bool(group.items) and all(self.same(item, other) for item in group.items)
        gold, answer = _only_item(gold, answer), _only_item(answer, gold)
        if not isinstance(gold, Several) or not isinstance(answer, Several):
            return self.same(gold, answer)
        kinds = {gold.kind, answer.kind}
        if "set" in kinds and kinds <= {"set", "list"}:
            return self.covers(gold, answer) and self.covers(answer, gold)
        if len(gold.items) != len(answer.items):
            return False
        ordered = all(self.same(g, a) for g, a in zip(gold.items, answer.items, strict=True))
        if kinds & {"tuple", "bracket"}:
            if len(gold.items) == 2 and "bracket" in kinds and len(kinds) == 2:
                return False  # [1, 2] is an interval: neither (1, 2) nor two answers
            if kinds == {"bracket", "set"} and len(gold.items) > 2:  # [2, 3, 5]: a programmer's list
                return self.matching(list(gold.items), list(answer.items))
            return "set" not in kinds and ordered
        if _distinctly_named(gold) != _distinctly_named(answer):
            return ordered  # x = 1, y = 2 against 1, 2
        return ordered or self.matching(list(gold.items), list(answer.items))

    def covers(self, first: Several, second: Several) -> bool:
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
        gold, answer = _nested_rows(gold), _nested_rows(answer)
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
        if not vector or not isinstance(other, Several) or other.kind not in ("tuple", "bracket"):
            return False
        return len(cells) == len(other.items) and all(map(self.same, cells, other.items))

    def ratios(self, gold: Shape, answer: Shape) -> bool:
        if isinstance(gold, Ratio) and isinstance(answer, Ratio):
            first, second = gold.terms, answer.terms
            if is_clock(gold) or is_clock(answer):
                return [term.value and number_of(term.value) for term in first] == [
                    term.value and number_of(term.value) for term in second
                ]
            return len(first) == len(second) and all(
                self.products(first[0], second[k], second[0], first[k]) for k in range(1, len(first))
            )
        ratio, other = (gold, answer) if isinstance(gold, Ratio) else (answer, gold)
        if not isinstance(ratio, Ratio) or not isinstance(other, Expr) or len(ratio.terms) != 2:
            return False
        return self.expressions(formula(f"({ratio.terms[0].text})/({ratio.terms[1].text})"), other)

    def products(self, a: Expr, b: Expr, c: Expr, d: Expr) -> bool:
        return self.expressions(formula(f"({a.text})({b.text})"), formula(f"({c.text})({d.text})"))

    # ---- regions

    def inequalities(self, gold: Shape, answer: Shape) -> bool:
        if isinstance(gold, Inequality) and isinstance(answer, Inequality):
            return same_inequality(gold, answer, self.expressions)
        inequality, other = (gold, answer) if isinstance(gold, Inequality) else (answer, gold)
        region = as_region(other)
        return (
            isinstance(inequality, Inequality)
            and region is not None
            and inequality_is_region(inequality, region)
        )

    def regions(self, gold: Region | None, answer: Region | None) -> bool:
        if gold is None or answer is None:
            return False
        if gold.name and answer.name and not _same_name(gold.name, answer.name):
            return False
        first, second = merged(gold.pieces), merged(answer.pieces)
        return len(first) == len(second) and all(
            g.low_open == a.low_open
            and g.high_open == a.high_open
            and self.expressions(g.low, a.low)
            and self.expressions(g.high, a.high)
            for g, a in zip(first, second, strict=True)
        )

    # ---- numbers and expressions

    def expressions(self, gold: Expr, answer: Expr) -> bool:
        signs = [bool(side.unit) + side.percent + bool(side.base) for side in (gold, answer)]
        if all(signs) and (gold.percent, bool(gold.base)) != (answer.percent, bool(answer.base)):
            return False  # 18% is not 18 hours, 40_9 is not 40 degrees
        if gold.base or answer.base:
            if gold.base and answer.base and gold.base != answer.base:
                return "10" in (gold.base, answer.base) and _in_base(gold) == _in_base(answer) is not None
            if answer.base and not gold.base and gold.value is not None:
                return _in_base(answer) is not None and _in_base(answer) == number_of(gold.value)
            digits = [expr.text.partition("_")[0] if expr.base else expr.text for expr in (gold, answer)]
            return digits[0].strip().lower() == digits[1].strip().lower()
        if (
            re.fullmatch(r"\s*[A-Ea-e]\s*", gold.text)
            and answer.text.strip().lower() == gold.text.strip().lower()
        ):
            return True  # a choice's letter
        gold, answer = with_short_unit(gold, answer), with_short_unit(answer, gold)
        if not _same_dimension(gold.unit, answer.unit):
            return False
        if gold.value is None or answer.value is None:
            return _squeezed(gold.text) == _squeezed(answer.text) or equal_expressions(gold.text, answer.text)
        if gold.digits or answer.digits:
            return _begins_alike(gold, answer)
        if gold.percent != answer.percent:
            return self.percentages(gold, answer)
        if gold.unit and answer.unit and gold.unit != answer.unit and gold.unit.factor and answer.unit.factor:
            factor = answer.unit.factor / gold.unit.factor
            answer = formula(f"({answer.text})\\cdot\\frac{{{factor.numerator}}}{{{factor.denominator}}}")
        verdict = _same(gold, same_constant(gold, answer), self.rel_tol, self.abs_tol)
        return gold.value == answer.value if verdict is None else verdict

    def percentages(self, gold: Expr, answer: Expr) -> bool:
        """50% is 0.5; and where one side leaves the sign out, 50. A number below 1 has to be the fraction."""
        plain, percent = (answer, gold) if gold.percent else (gold, answer)
        if plain.value is None or percent.value is None:
            return False
        if same_value(
            formula(f"({percent.text})/100").value or percent.value, plain.value, self.rel_tol, self.abs_tol
        ):
            return True
        number = real_of(plain.value)
        large = number is not None and abs(number) >= 1
        return bool(large and same_value(percent.value, plain.value, self.rel_tol, self.abs_tol))


# ---- small questions ------------------------------------------------------------------------------


def _same(a: Expr, b: Expr, rel_tol: float, abs_tol: float) -> bool | None:
    if a.value is None or b.value is None:
        return None
    return same_value(a.value, b.value, rel_tol, abs_tol)


def _begins_alike(a: Expr, b: Expr) -> bool:
    """0.666... and 0.667... stand for what begins so, cut off or rounded."""
    cut, other = (a, b) if a.digits else (b, a)
    if cut.value is None or other.value is None or cut.digits is None:
        return False
    if other.digits:
        return bool(_same(a, b, 0.0, 10.0 ** -min(cut.digits, other.digits)))
    given, exact = real_of(cut.value), real_of(other.value)
    if given is None or exact is None:
        return False
    rest = (abs(exact) - abs(given)) * 10**cut.digits
    return bool(-0.5 <= rest < 1 and given * exact >= 0)


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


def _unsolved(equation: Equation) -> bool:
    """2x + 3 = 5 and the circle x^2 + y^2 = 5 do not say that anything is 5; m + n = 5 tells a quantity."""
    left = equation.left
    if not isinstance(left, Expr) or left.value is None:
        return False
    names = left.value.names
    curve = names <= {"x", "y", "z"} and re.search(r"\^|(?<![\d^_])[-+]\s*\d+(?![\dA-Za-z\\(])", left.text)
    return len(names) == 1 or bool(curve)


def _spelt_out(shape: Words | Expr) -> Words | Expr:
    """The number that words spell."""
    if isinstance(shape, Words) and shape.number is not None:
        return formula(str(shape.number))
    return shape


def _named_entries(shape: Shape, other: Shape) -> Shape:
    """b = 3, a = 2 in the order of the other side's (a, b) = (2, 3)."""
    if not isinstance(shape, Several) or not _distinctly_named(shape) or not isinstance(other, Named):
        return shape
    names = re.sub(r"[()\s{}]", "", other.name).split(",")
    entries = {
        re.sub(r"[\s{}]", "", item.name): item.inner for item in shape.items if isinstance(item, Named)
    }
    if sorted(names) != sorted(entries):
        return shape
    return Several("tuple", tuple(entries[name] for name in names))


def _same_name(a: str, b: str) -> bool:
    a, b = (re.sub(r"[\s{}]", "", name) for name in (a, b))
    return a == b or {a.partition("(")[0], b.partition("(")[0]} == {"y", "f"} and "(" in a + b


def _argument(name: str) -> str | None:
    match = re.search(r"\(([^(),]+)\)$|_\{?([a-z])\}?$", name)
    return (match[1] or match[2]).strip() if match else None


def _one_number(shape: Shape, other: Shape) -> Shape:
    """ "100,200" is one number, unless the other side is a list beyond doubt."""
    if isinstance(shape, Several) and shape.number is not None:
        listed = isinstance(other, Several) and other.number is None and other.kind in ("list", "set")
        return shape if listed else shape.number
    return shape


def _only_item(shape: Several, other: Several) -> Shape:
    """{(1, 2)} beside (1, 2): the one item of a set or list."""
    return (
        shape.items[0]
        if shape.kind in ("set", "list") and len(shape.items) == 1 != len(other.items)
        else shape
    )


def _nested_rows(shape: Shape) -> Shape:
    """[[1, 2], [3, 4]] as a matrix; anything else as it is."""
    if not isinstance(shape, Several) or not all(isinstance(row, Several) for row in shape.items):
        return shape
    return Matrix(tuple(row.items for row in shape.items if isinstance(row, Several)))


def _distinctly_named(group: Several) -> bool:
    names = {item.name for item in group.items if isinstance(item, Named)}
    return len(names) == len(group.items) > 1


def _same_dimension(a: Unit | None, b: Unit | None) -> bool:
    return a is None or b is None or a.dimension is None or b.dimension is None or a.dimension == b.dimension


def _difference(shape: Shape) -> Value | None:
    if isinstance(shape, Named) and isinstance(shape.inner, Expr):
        left, right = re.sub(r"^([A-Za-z])\((\w)\)$", r"\1", shape.name), shape.inner
        return formula(f"({left})-({right.text})").value if right.value is not None else None
    if isinstance(shape, Equation) and isinstance(shape.left, Expr) and isinstance(shape.right, Expr):
        return formula(f"({shape.left.text})-({shape.right.text})").value
    return None


def _source(shape: Shape) -> str:
    if isinstance(shape, Named):
        return f"{shape.name}={_source(shape.inner)}"
    if isinstance(shape, Equation | Expr):
        return shape.text
    return ""
