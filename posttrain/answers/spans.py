r"""Mathematics within prose: where $...$, \(...\), \[...\] stand, and which dollar signs are money."""

from __future__ import annotations

import re
from dataclasses import dataclass

from posttrain.answers.tree import FUNCTION_NAMES


@dataclass(frozen=True)
class Span:
    begin: int
    end: int
    content: str


_DISPLAY = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL)
_DOLLAR = re.compile(r"(?<!\\)\$")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_TEXT_COMMAND = re.compile(
    r"\\(?:text\w*|mbox|mathrm|operatorname)\s*\{[^{}]*\}|\\(?:begin|end)\s*\{\w+\*?\}"
)
_MATHEMATICAL_WORDS = FUNCTION_NAMES | frozenset(
    (
        "and",
        "log",
        "sqrt",
        "pmod",
        "mod",
        "lim",
        "max",
        "min",
        "gcd",
        "lcm",
        "det",
        "inf",
        "sup",
        "percent",
        "pct",
    )
)
_DANGLES = re.compile(r"(?:[=+*/<>^_-]|\\(?:times|cdot|approx|le|ge|frac|sqrt|text|div|pm))\s*$")


def mathematics(text: str) -> list[Span]:
    """The formulas of a text in order, without their delimiters. "$10 and $20" is money and not a formula."""
    spans = [
        Span(match.start(), match.end(), next(filter(None, match.groups())).strip())
        for match in _DISPLAY.finditer(text)
    ]
    taken = bytearray(len(text))  # 1 within a formula found already
    for span in spans:
        taken[span.begin : span.end] = b"\x01" * (span.end - span.begin)
    dollars = [match.start() for match in _DOLLAR.finditer(text) if not taken[match.start()]]
    position = 0
    while position + 1 < len(dollars):
        begin, end = dollars[position], dollars[position + 1]
        content = text[begin + 1 : end]
        if is_formula(content) and 1 not in taken[begin:end]:
            spans.append(Span(begin, end + 1, content.strip()))
            position += 2
        else:
            position += 1
    return sorted(spans, key=lambda span: span.begin)


def is_formula(content: str) -> bool:
    """Whether what stands between two dollar signs is a formula, and not prose between two amounts of money."""
    if not content.strip() or "\n\n" in content:
        return False
    plain = _TEXT_COMMAND.sub(" ", content)
    if any(word.lower() not in _MATHEMATICAL_WORDS and not word.isupper() for word in _WORD.findall(plain)):
        # one word alone may be an answer: $Friday$
        return bool(re.fullmatch(r"\s*[A-Za-z]+\s*", content))
    return not (re.match(r"\d", content) and _DANGLES.search(content.strip()))


def opens_formula(text: str) -> bool:
    r"""Whether the text ends inside of a formula: an open \( or \[, an open brace, a dollar sign that is no money."""
    rest = text
    for span in reversed(mathematics(text)):
        rest = rest[: span.begin] + " " + rest[span.end :]
    if re.search(r"\\[(\[]", rest) or "$$" in rest:
        return True
    if re.search(r"(?<!\\)\$(?!\s*\d[\d,.]*(?:\s|$|[^\w^\\/*+=({-]))[^$]*$", rest):
        return True
    depth = 0
    for symbol in re.findall(r"\\.|[{}]", text, re.DOTALL):
        depth = max(depth + (symbol == "{") - (symbol == "}"), 0)
    return depth > 0
