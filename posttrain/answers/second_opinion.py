r"""When math-verify is asked about two answers that differ as they are read here, and when its "equal" is believed.

It knows what is not read here: sums of matrices, integrals, sets of functions. But it also calls equal what is not: it
drops units, words and bases, compares small numbers to six decimals, takes tuples for sets, the right side of an
equation for its value, and two equations that it cannot solve for the same. Each guard below withholds its belief for
one of these.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from posttrain.answers.fallback import equal_by_math_verify
from posttrain.answers.notation import tidy
from posttrain.answers.shape import (
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
    leaves,
)

_WORDS = re.compile(r"\\text|(?<![A-Za-z\\])[A-Za-z]{4,}|\\forall|\\exists|\\ldots")
_ROUNDED = re.compile(
    r"\\approx|\.\d|!|\^\s*\{?\s*-?\d{2,}|\^\s*\{[^{}]*\d{2,}[^{}]*\}|\^\s*\{?\s*-\s*\d|\d[eE]-\d|\d{7,}"
)
_GREEK = re.compile(r"\\(?:alpha|beta|gamma|delta|theta|lambda|mu|phi|omega|rho|sigma|tau)(?![A-Za-z])")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{\w+\}(?:\{[clr|]+\})?")


@dataclass(frozen=True)
class Side:
    """One of the two answers: its tidy text and its shape."""

    text: str
    shape: Shape


def agreed_by_math_verify(gold: str, answer: str, gold_shape: Shape, answer_shape: Shape) -> bool:
    """Whether math-verify calls two answers equal, there is something to ask it, and no guard objects."""
    first, second = Side(tidy(gold), gold_shape), Side(tidy(answer), answer_shape)
    if is_certain(first, second) or not all(guard(first, second) for guard in GUARDS):
        return False
    return equal_by_math_verify(_as_latex(first.text), _as_latex(second.text))


def equal_expressions(gold: str, answer: str) -> bool:
    """Whether math-verify calls two formulas equal of which one has no value here, and no guard objects."""
    first, second = Side(gold, Expr(gold, None)), Side(answer, Expr(answer, None))
    if not all(guard(first, second) for guard in GUARDS):
        return False
    return equal_by_math_verify(_as_latex(gold), _as_latex(answer))


def is_certain(gold: Side, answer: Side) -> bool:
    """Whether the difference needs no second opinion: both are of one kind, and all in them has a value."""
    if isinstance(gold.shape, Words | Ratio) or isinstance(answer.shape, Words | Ratio):
        return True
    if _kind(gold.shape) != _kind(answer.shape):
        return _is_evaluated(gold.shape) and _is_evaluated(answer.shape) and not _has_matrix(gold, answer)
    return _is_evaluated(gold.shape) and _is_evaluated(answer.shape)


def _kind(shape: Shape) -> str:
    shape = shape.inner if isinstance(shape, Named) else shape
    return type(shape).__name__


def _is_evaluated(shape: Shape) -> bool:
    if isinstance(shape, Equation):
        return _is_evaluated(shape.left) and _is_evaluated(shape.right)
    if isinstance(shape, Inequality):
        return False  # it has many forms
    return all(isinstance(leaf, Expr) and leaf.value is not None for leaf in leaves(shape))


def _has_matrix(gold: Side, answer: Side) -> bool:
    return isinstance(gold.shape, Matrix) or isinstance(answer.shape, Matrix)


# ---- guards: each is True where math-verify may be believed ---------------------------------------


def no_words(gold: Side, answer: Side) -> bool:
    r"""It drops \text{...}: "144 or more" is 144 to it, "3 \text{ not } 4" is 3, and "east" is "seat"."""
    return not any(_WORDS.search(_ENVIRONMENT.sub(" ", side.text)) for side in (gold, answer))


def no_units(gold: Side, answer: Side) -> bool:
    """It drops units and percent signs (9% is 9) and the base of a number (52_8 is 52_9)."""
    found = [leaf for side in (gold, answer) for leaf in leaves(side.shape) if isinstance(leaf, Expr)]
    return not any(leaf.unit or leaf.percent or leaf.base or leaf.digits for leaf in found)


def exact(gold: Side, answer: Side) -> bool:
    r"""It rounds to six decimals: 1/2^{99} is 1/2^{98}, and 1 \approx 7 may be either."""
    return not any(_ROUNDED.search(side.text) for side in (gold, answer))


def no_partial_derivatives(gold: Side, answer: Side) -> bool:
    """The derivatives of an unknown function are all zero to it."""
    return not any(r"\partial" in side.text for side in (gold, answer))


def same_letters(gold: Side, answer: Side) -> bool:
    """It takes capitals for small letters, and may read only a part of what it cannot read whole."""
    first, second = _letters(gold), _letters(answer)
    bound = _bound_letters(gold) | _bound_letters(answer)
    return first - bound == second - bound


def same_size(gold: Side, answer: Side) -> bool:
    """{3, 1, 1} has three entries, of which its sets keep two; one value is no list of several."""
    return _size(gold.shape) == _size(answer.shape)


def same_brackets(gold: Side, answer: Side) -> bool:
    """(1, 2) is neither {1, 2} nor [1, 2], although it compares them entry by entry."""
    return _brackets(gold.shape) == _brackets(answer.shape)


def same_relations(gold: Side, answer: Side) -> bool:
    """The right side of an equation is not its value, and x < 1 is not x <= 1."""
    return _relations(gold) == _relations(answer)


def solvable(gold: Side, answer: Side) -> bool:
    """Of equations it compares the solutions that it finds: two of which it finds none are the same to it."""
    if not any(isinstance(side.shape, Equation | Named) for side in (gold, answer)):
        return True
    return not any(
        re.search(r"\\(?:sum|prod|int|lim)|_\{?[a-z]|\([a-z][^()]*\)", side.text) for side in (gold, answer)
    )


GUARDS: tuple[Callable[[Side, Side], bool], ...] = (
    no_words, no_units, exact, no_partial_derivatives, same_letters, same_size, same_brackets, same_relations, solvable,
)  # fmt: skip


def _letters(side: Side) -> frozenset[str]:
    """The variables of an answer, without its label."""
    text = side.text
    if isinstance(side.shape, Named):
        text = text.partition("=")[2] or text
    text = re.sub(r"\^\s*(?:T(?![A-Za-z])|\{\s*T\s*\})", "", _ENVIRONMENT.sub(" ", text))  # transposed
    return frozenset(re.findall(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", " ", text))) | frozenset(
        _GREEK.findall(text)
    )


def _bound_letters(side: Side) -> frozenset[str]:
    r"""The letters that a sum, a limit or an integral runs over, and the d of an integral; e and i are numbers."""
    running = re.findall(r"\\(?:sum|prod|lim)[^A-Za-z]*_\s*\{?\s*([a-z])", side.text)
    if re.search(r"\\int|\\frac\s*\{\s*d", side.text):
        running += ["d", *re.findall(r"d\s*([a-z])(?![A-Za-z])", side.text)]
    return frozenset([*running, "e", "i"])


def _size(shape: Shape) -> int:
    shape = shape.inner if isinstance(shape, Named) else shape
    return len(shape.items) if isinstance(shape, Several) else 1


def _brackets(shape: Shape) -> str:
    shape = shape.inner if isinstance(shape, Named) else shape
    if isinstance(shape, Several):
        return "list" if shape.kind == "set" else shape.kind
    return "region" if isinstance(shape, Region | Inequality) else ""


def _relations(side: Side) -> list[str]:
    if isinstance(side.shape, Named):
        return []
    text = re.sub(r"_\s*\{[^{}]*\}", "", side.text)  # a sum begins at k = 1
    strict = re.findall(r"[<>]|\\ne(?![A-Za-z])", text)
    weak = re.findall(r"\\[lg]e(?![A-Za-z])", text)
    equal = re.findall(r"=|\\equiv", text)
    return ["strict"] * bool(strict) + ["weak"] * bool(weak) + ["equal"] * bool(equal)


_SETS = re.compile(r"\\([RZNQC])(?![A-Za-z])")


def _as_latex(tidied: str) -> str:
    return _SETS.sub(r"\\mathbb{\1}", tidied)
