r"""Relations in words: "x is at least 5" is x \ge 5."""

from __future__ import annotations

import re

_SIGNS: list[tuple[re.Pattern[str], str]] = [
    (re.compile(rf"\s*(?:(?:must|can|should|has to) be|is|are|be)?\s*\b(?:strictly )?{words}\s*"), sign)
    for words, sign in (
        (r"(?:greater|more|larger|bigger|higher) than or equal to", r" \ge "),
        (r"(?:less|smaller|lower|fewer) than or equal to", r" \le "),
        (r"(?:at least|no less than|not less than|no smaller than|not smaller than)", r" \ge "),
        (r"(?:at most|no more than|not more than|no greater than|not greater than|not exceeding)", r" \le "),
        (r"(?:greater|more|larger|bigger|higher) than", " > "),
        (r"(?:less|smaller|lower|fewer) than", " < "),
        (r"(?:not equal to|different from|unequal to)", r" \ne "),
        (r"(?:does not equal|cannot equal|cannot be|can't be|is not)", r" \ne "),
        (r"(?:equal to)", " = "),
    )
]
_RELATING = re.compile(
    r"\b(?:than|least|most|exceeding|equals?|different|unequal|cannot|is|are|lies|between)\b"
)
_EQUALS = re.compile(r"\s+(?:equals?|is)\s+")
_SUBJECT = re.compile(
    r"(?:the )?(?:value of )?((?:[A-Za-z]|\\[A-Za-z]+)(?:_\{?\w+\}?)?'?(?:\([A-Za-z\d]\))?"
    r"(?:[-+*/^\d\s(){}]|(?<![A-Za-z])[A-Za-z](?![A-Za-z]))*)"
)
_BETWEEN = re.compile(
    r"\s*(?:is|lies|are)?\s*(?:strictly )?between (?P<low>.+?) and (?P<high>.+?)(?P<closed>,? inclusive)?"
)


def relation_in_signs(text: str) -> str | None:
    """The relation with its sign, or None where the text is none; its subject is a variable or a short formula."""
    if not _RELATING.search(text):
        return None
    plain = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)
    subject = _SUBJECT.match(plain)
    if subject is None:
        return None
    left, rest = subject[1].strip(), plain[subject.end() :]
    if subject[1] != subject[1].rstrip():
        rest = " " + rest
    between = _BETWEEN.fullmatch(rest)
    if between:
        sign = r" \le " if between["closed"] else " < "
        return f"{between['low']}{sign}{left}{sign}{between['high']}"
    for words, sign in _SIGNS:
        match = words.match(rest)
        if match and _is_short(rest[match.end() :]):
            return left + sign + rest[match.end() :].strip()
    match = _EQUALS.match(rest)
    if match and _is_short(rest[match.end() :]):
        return f"{left} = {rest[match.end() :].strip()}"
    return None


def _is_short(rest: str) -> bool:
    """Whether the other side is a number or formula: "n is not even" says something else."""
    told = re.search(r"\d|\\[A-Za-z]", rest) or re.fullmatch(r"\s*[A-Za-z]\s*", rest)
    return bool(told) and not re.search(r"(?<![\\A-Za-z])[A-Za-z]{2,} [A-Za-z]{2,}", rest)
