"""Where math-verify is asked, and each of its false positives that a guard holds back."""

from __future__ import annotations

import pytest

from posttrain.answers import second_opinion
from posttrain.answers.fallback import equal_by_math_verify
from posttrain.answers.grading import grade
from posttrain.answers.notation import tidy
from posttrain.answers.reading import read_shape
from posttrain.answers.second_opinion import GUARDS, Side, is_certain


def side(text: str) -> Side:
    return Side(tidy(text), read_shape(text))


GUARDED = [
    # guard, gold, answer: math-verify says equal
    ("no_words", "144", r"144\text{ or more}"),
    ("no_words", r"\frac{3}{7}", r"\frac{3}{7}\text{ not }\frac{7}{3}"),
    ("no_units", r"5 \text{ cm}", r"5 \text{ m}"),
    ("no_units", "52_8", "52_9"),
    ("exact", r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
    ("exact", r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
    ("exact", "0.0000672", "0.0000673"),
    ("no_partial_derivatives", r"\frac{\partial f}{\partial x}", r"\frac{\partial f}{\partial y}"),
    ("same_letters", "x^2", "X^2"),
    ("same_size", "16,3,1,1", "16,3,1"),
    ("same_brackets", r"\{1,2,3\}", "(1,2,3)"),
    ("same_relations", "5", "2x+3=5"),
    ("solvable", r"F_n = \sum_{k=0}^{n-1} F_k F_{n-k-1}", r"F_n = \sum_{k=0}^{n-2} F_k F_{n-k-2}"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "gold", "answer"), GUARDED)
def test_a_guard_for_each_false_positive(name, gold, answer):
    first, second = side(gold), side(answer)
    (guard,) = [guard for guard in GUARDS if guard.__name__ == name]
    assert guard(first, second) is False
    assert guard(second, first) is False
    assert grade(gold, rf"\boxed{{{answer}}}").correct is False


def test_every_guard_has_a_case():
    assert {name for name, _, _ in GUARDED} == {guard.__name__ for guard in GUARDS}


AGREED = [
    (r"\begin{pmatrix}6\\8\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}+\begin{pmatrix}5\\6\end{pmatrix}"),
    (r"-2", r"\det\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    (r"\int_0^1 x^2 dx", r"\frac{1}{3}"),
    (r"\sum_{k=1}^{n} k", r"\frac{n(n+1)}{2}"),
    (r"2x", r"\frac{d}{dx}(x^2)"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), AGREED)
def test_what_is_not_read_here_is_decided_by_math_verify(gold, answer, monkeypatch):
    assert grade(gold, rf"\boxed{{{answer}}}").correct is True
    monkeypatch.setattr(second_opinion, "equal_by_math_verify", lambda gold, answer: False)
    second_opinion_free = grade.__globals__["equal_answers"].__wrapped__
    assert second_opinion_free(gold, answer) is False


def test_a_difference_that_is_certain_asks_nobody(monkeypatch):
    asked = []
    monkeypatch.setattr(second_opinion, "equal_by_math_verify", lambda gold, answer: asked.append(gold))
    pairs = [
        ("5", "6"),
        ("x^2+1", "x^2+2"),
        ("(1,2)", "(2,1)"),
        (r"\text{east}", "seat"),
        ("x>2", "x>3"),
        ("1:2", "2:1"),
    ]
    for gold, answer in pairs:
        assert is_certain(side(gold), side(answer))
        assert grade(gold, rf"\boxed{{{answer}}}").correct is False
    assert asked == []


BOMBS = [
    r"9^{9^{9^9}}",
    r"\sum_{k=1}^{10^{9}} 9999999!",
    "(" * 30 + "x" + ")" * 30,
    r"x^{99999999}",
    "2 3 4 5",
]


@pytest.mark.parametrize("bomb", BOMBS)
def test_what_would_hang_is_not_handed_on(bomb):
    assert equal_by_math_verify(bomb, bomb) is False
