"""Whole numbers in words: twenty-one, one hundred and five, minus three."""

from __future__ import annotations

import re

_COUNTING = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_ONES = {word: n for n, word in enumerate(_COUNTING.split())}
_SMALL = _ONES | {word: 10 * (n + 2) for n, word in enumerate(_TENS.split())}
_LARGE = {"thousand": 10**3, "million": 10**6, "billion": 10**9}


def word_number(words: str) -> int | None:
    """The number that lower-case words spell, or None: "two three" and "hundred" spell none."""
    tokens = re.split(r"[\s-]+", words.strip())
    negative = len(tokens) > 1 and tokens[0] in ("minus", "negative")
    number = _counted([token for token in tokens[negative:] if token != "and"])
    return number if number is None else -number if negative else number


def _counted(tokens: list[str]) -> int | None:
    total, group, room = 0, 0, 1000  # room: what a word may still add to its group of three digits
    for token in tokens:
        if token in _SMALL and _SMALL[token] < room:
            group += _SMALL[token]
            room = 10 if _SMALL[token] >= 20 else 0
        elif token == "hundred" and 0 < group < 10:
            group, room = 100 * group, 100
        elif token in _LARGE and group and (not total or total % (1000 * _LARGE[token]) == 0):
            total, group, room = total + group * _LARGE[token], 0, 1000
        else:
            return None
    return total + group if tokens else None
