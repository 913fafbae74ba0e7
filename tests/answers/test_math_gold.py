"""References: where their answer stands, and which have none."""

from __future__ import annotations

import pytest

from posttrain.answers.grading import canonical_answer, grade, read_gold

NO_ANSWER = [
    "N/A", "n/a", "NA", "nan", "NaN", "null", "None available", "unknown", "-", "?", "no answer", "(no answer)", "TBD",
    "not available", "#### N/A", r"\boxed{N/A}", "$N/A$", "Answer not found", "I don't know", "Proof.",
    "See the solution above.", "We proceed by induction on n.", "The proof is left to the reader.",
    "She sold 24 clips in May, and 48 in April.", "Let ABC be a triangle with sides 3 and 4.",
    "First, compute the total cost of all the apples. It costs 5 dollars each and there are 4 of them.",
    r"We have $x=5$ and $y=3$ as shown, so that the sum of them can be computed.",
]  # fmt: skip
ANSWERS = [
    "forty two", "Evelyn", "5 apples", "12 square feet per hour", "x = 2 or x = 3", "all real numbers except 3",
    "$5$ apples", "$1$ and $2$", "no solution", "undefined", "none", "east", "(C)", "2 hours and 30 minutes",
    "5 dollars and 20 cents", r"\text{The medians meet in a single point}", r"A \cup B", "f'", r"\mathbb{Z}", r"\{\}",
    "1:2:3:\\ldots", "March 5, 2020", "x is greater than 5", "red, green and blue", "p and q are both odd",
    r"$f(x)=ax+b$, where $b$ is an arbitrary integer, and $a$ is an arbitrary positive integer",
]  # fmt: skip


@pytest.mark.parametrize("gold", NO_ANSWER)
def test_a_reference_without_an_answer_is_none(gold):
    assert grade(gold, r"\boxed{5}").correct is None
    assert grade(gold, r"\boxed{0}").correct is None


@pytest.mark.parametrize("gold", ANSWERS)
def test_words_and_notation_are_answers(gold):
    assert grade(gold, r"\boxed{17}").correct is False
    assert grade(gold, rf"\boxed{{{gold}}}").correct is True


def test_a_reference_may_state_its_answer():
    assert grade("The answer is 5.", r"\boxed{5}").correct is True
    assert read_gold(r"Thus the final answer is $\frac{1}{2}$. I hope it is correct.") == r"\frac{1}{2}"
    assert grade("The total is then computed, and the answer is 12 apples.", r"\boxed{12}").correct is True


SPELT = [("42", "forty two"), ("21", r"\text{twenty-one}"), ("0", "zero"), ("-3", r"\text{negative three}")]


@pytest.mark.parametrize(("number", "words"), SPELT)
def test_number_words_are_numbers_where_asked(number, words):
    for gold, answer in ((number, words), (words, number)):
        assert grade(gold, rf"\boxed{{{answer}}}").correct is False
        assert grade(gold, rf"\boxed{{{answer}}}", number_words=True).correct is True
    assert grade(words, rf"\boxed{{{words}}}").correct is True
    assert grade("43", rf"\boxed{{{words}}}", number_words=True).correct is False
    assert canonical_answer(words) != canonical_answer(number)
