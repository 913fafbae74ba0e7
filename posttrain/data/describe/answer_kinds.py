"""What kind of answer a text gives: a number, an expression, a choice, a list, words, code, prose.

Read as rewards and evaluation read it: `answers.gold` finds the answer in the text, `answers.reading` its shape.
"""

from __future__ import annotations

import re

from posttrain.answers.gold import answer_of, is_prose
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
)

LONGEST_READ = 1_000
"""Characters: a longer text without a mark is prose or code, and not read as an answer."""
_CHOICE = re.compile(r"[\s(\[$]*(?:\\text(?:bf)?\{)?\(?[A-J]\)?\}?[\s)\].$]*(?::.*)?")
_CODE = re.compile(
    r"```|^\s*(?:def |class |import |from \w+ import |#include|public |function |return\b|SELECT\s)", re.M
)
_DIGITS = re.compile(r"[\s\d.,%$+{}/^-]+")
_VARIABLE = re.compile(r"[A-Za-z]")


def answer_mark(text: str) -> str:
    """How the text marks its answer: "####", "\\boxed", or "nothing"."""
    if "####" in text:
        return "####"
    return "\\boxed" if "\\boxed" in text or "\\fbox" in text else "nothing"


def answer_kind(text: str) -> str:
    """number, expression, choice, list, interval, equation, matrix, ratio, words, text, code or none."""
    text = text.strip()
    if not text:
        return "none"
    marked = answer_mark(text) != "nothing"
    if not marked and _CODE.search(text):
        return "code"
    if not marked and (len(text) > LONGEST_READ or is_prose(text)):
        return "text"
    answer = answer_of(text)
    if answer is None or len(answer) > LONGEST_READ:
        return "none" if answer is None else "text"
    if _CHOICE.fullmatch(answer) and len(answer) <= 200:
        return "choice"
    try:
        return _kind(read_shape(answer))
    except (ValueError, ArithmeticError, RecursionError):
        return "text"  # what no grader reads either


def _kind(shape: Shape) -> str:
    if isinstance(shape, Named):
        return _kind(shape.inner)
    if isinstance(shape, Either):
        return _kind(shape.options[0])
    if isinstance(shape, Several):
        return "number" if shape.number is not None else "list"
    if isinstance(shape, Expr):
        return _expression(shape)
    return _NAMES[type(shape)]


def _expression(shape: Expr) -> str:
    if shape.value is None:
        return "words" if len(_VARIABLE.findall(shape.text)) > 3 and "\\" not in shape.text else "expression"
    plain = re.sub(r"\\(?:[dtc]?frac|text\w*|mathrm|left|right|circ|[%$!,; ])", "", shape.text)
    return "number" if _DIGITS.fullmatch(plain) else "expression"


_NAMES: dict[type, str] = {
    Words: "words",
    Equation: "equation",
    Inequality: "interval",
    Region: "interval",
    Matrix: "matrix",
    Ratio: "ratio",
}
