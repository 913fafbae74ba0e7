"""Whole numbers in words."""

from __future__ import annotations

import pytest

from posttrain.answers.numerals import word_number

SPELT = {
    "zero": 0,
    "twelve": 12,
    "twenty-one": 21,
    "ninety nine": 99,
    "one hundred": 100,
    "three hundred and five": 305,
    "one thousand two hundred": 1200,
    "one hundred one thousand": 101_000,
    "two million three thousand and forty": 2_003_040,
    "negative three": -3,
    "minus twenty": -20,
}


@pytest.mark.parametrize(("words", "number"), SPELT.items())
def test_a_number_in_words(words, number):
    assert word_number(words) == number


@pytest.mark.parametrize(
    "words",
    ["", "and", "hundred", "five two", "twenty twelve", "twenty thirty", "ten hundred", "one thousand two million",
     "one thousand two thousand", "minus", "five apples"],
)  # fmt: skip
def test_words_that_spell_no_number(words):
    assert word_number(words) is None
