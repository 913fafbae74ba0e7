"""One number or expression of an answer: its unit, its percent sign, its base, its repeating decimals."""

from __future__ import annotations

import re
from fractions import Fraction

from posttrain.answers.notation import CURRENCY, strip_braces
from posttrain.answers.numerals import word_number
from posttrain.answers.shape import Expr
from posttrain.answers.tree import Unreadable
from posttrain.answers.units import BARE, MULTIPLES, Unit, read_unit
from posttrain.answers.value import Value, read_value

_UNIT_WORDS = re.compile(
    rf"(?<=[\d}})\]%.])\s*((?:{'|'.join(BARE)}|(?<= )(?:in|min))(?:\s*\^\s*\{{?\d\}}?)?(?:\s*/\s*[a-z]+)?)$",
    re.IGNORECASE,
)
_UNIT_SHARE = r"(\\text\s*\{[^{}]*\}(?:\s*\^\s*(?:\d|\{\s*\d\s*\}))?)"
_UNIT_FRACTION = re.compile(rf"\\frac\s*\{{\s*{_UNIT_SHARE}\s*\}}\s*\{{\s*{_UNIT_SHARE}\s*\}}$")
_UNIT_TAIL = re.compile(r"(?:\\text\s*\{[^{}]*\}|\^\s*\{?\s*-?\d+\s*\}?|\\cdot|\^\\circ|[/.\s{}()A-Za-z])+")
_MODULUS = re.compile(
    r"\s*(?:\\pmod\s*(?:\{\s*(\w+)\s*\}|(\w+))|\(?\s*(?:\\mod|\\text\s*\{\s*\(?mod\s*\}|mod)\s*\{?\s*(\w+)\s*\}?\s*\)?)$"
)
_FOREIGN_WORDS = re.compile(r"\s*(?:\\text\s*\{)?\s*[^\W\d_a-zA-Z][^\d\\{}()=<>+*/^]*\}?$")
_REPEATING = re.compile(r"(-?\d*)\.(\d*)(?:\\(?:overline|bar|dot)\s*\{?\s*(\d+)\s*\}?|\((\d+)\))")
_BASE = re.compile(
    r"\(?(-?[0-9][0-9A-Za-z.]*|[A-Fa-f][0-9A-Fa-f]+(?=\s*_\s*\{?\s*16(?!\d)))\)?\s*"
    r"_\s*\{?\s*(?:\\text\s*\{)?\s*(\d+|[a-z]{3,})\s*\}?\s*\}?"
)


def read_expression(text: str) -> Expr:
    """A number or expression with its unit or percent sign taken off."""
    text = strip_braces(text)
    text = re.sub(r"^(?:\\approx|=|\\text\s*\{\s*(?:about|approximately)\s*\})\s*", "", text)
    body, unit, percent = _take_unit(text)
    body = (
        re.sub(r"(?<=\d)[ ](?=\d{3}(?!\d))", "", body)
        if re.fullmatch(r"[-+]?\d{1,3}( \d{3})+(\.\d+)?", body)
        else body
    )
    if re.fullmatch(r"-?\d{1,3}(\.\d{3}){2,}", body):
        body = body.replace(".", "")
    body = re.sub(r"^(-?\d{1,3}(?: \d{3})+)(?= \d+\s*/)", lambda match: match[1].replace(" ", ""), body)
    body = re.sub(r"^(-?\d+) (\d+)\s*/\s*(\d+)$", r"\1\\frac{\2}{\3}", body)
    base = _BASE.fullmatch(body)
    if base:
        word = word_number(base[2])
        return Expr(
            f"{base[1]}_{base[2]}",
            _value(base[1]) if base[1].isdigit() else None,
            unit,
            percent,
            base[2] if word is None else str(word),
        )
    digits = re.fullmatch(r"(-?\d*\.(\d{2,}))\s*(?:\\ldots|\.\.\.?)", body)
    if digits:
        return Expr(body, _value(digits[1]), unit, percent, digits=len(digits[2]))
    repeating = _REPEATING.fullmatch(body)
    if repeating:
        whole, fixed, period, bracketed = repeating.groups()
        body = _as_fraction(whole, fixed, period or bracketed)
    return Expr(body, _value(body), unit, percent)


def _as_fraction(whole: str, fixed: str, period: str) -> str:
    sign, whole = ("-", whole[1:]) if whole.startswith("-") else ("", whole)
    scale = 10 ** len(fixed)
    nines = 10 ** len(period) - 1
    numerator = int((whole or "0") + fixed) * nines + int(period)
    return rf"{sign}\frac{{{numerator}}}{{{scale * nines}}}"


def _take_unit(text: str) -> tuple[str, Unit | None, bool]:
    unit = None
    text = text.strip()
    if text.startswith((CURRENCY, "-" + CURRENCY)):
        text, unit = text.replace(CURRENCY, "", 1).strip(), read_unit(CURRENCY)
    elif text.endswith(CURRENCY):
        text, unit = text[:-1].strip(), read_unit(CURRENCY)
    modulus = _MODULUS.search(text)
    if modulus and modulus.start():
        residue = Unit(Fraction(1), ((f"mod {next(filter(None, modulus.groups()))}", 1),))
        return text[: modulus.start()].strip(), residue, False
    foreign = _FOREIGN_WORDS.search(text)  # 5元, 5 яблок: a unit or what is counted
    if foreign and foreign.start() and _value(text[: foreign.start()].strip()) is not None:
        return text[: foreign.start()].strip(), unit or Unit(None, None), False
    percent = re.search(
        r"(?:%|\\text\s*\{\s*(?:%|percent(?:age)?|pct)\s*\}|(?<=[\d} ])(?:percent(?:age)?|pct))$", text
    )
    if percent:
        return text[: percent.start()].strip(), None, True
    multiple = re.search(rf"\s*(?:\\text\s*\{{)?\s*({'|'.join(MULTIPLES)})s?\s*([a-z ]*)\}}?$", text)
    if multiple and multiple.start() and _value(text[: multiple.start()]) is not None:
        unit = unit or (read_unit(multiple[2]) if multiple[2].strip() else None)
        return f"({text[: multiple.start()]})\\cdot {MULTIPLES[multiple[1]]}", unit, False
    fraction = _UNIT_FRACTION.search(text)
    if fraction and fraction.start():
        return text[: fraction.start()].strip(), read_unit(f"{fraction[1]}/{fraction[2]}"), False
    degrees = re.search(r"\^\\circ\s*[CF]?$", text)
    if degrees and not re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):
        return text[: degrees.start()].strip(), read_unit("degrees"), False
    start = text.find(r"\text")
    scale = text.find(r"^\circ \text")
    if scale > 0:  # 25^\circ \text{C}
        return text[:scale].strip(), read_unit("degrees"), False
    if start > 0 and re.search(r"[\d})\]A-Za-z]\s*$", text[:start]):
        head, tail = text[:start].strip(" /*").removesuffix(r"\cdot").strip(), text[start:]
        if _value(head) is not None and _UNIT_TAIL.fullmatch(tail):
            slash = "/" if text[:start].rstrip().endswith("/") else ""
            return head, unit or read_unit(slash + tail), False
    bare = _UNIT_WORDS.search(text)
    if bare:
        return text[: bare.start()].strip(), read_unit(bare[1]), False
    spaced = re.fullmatch(r"(-?[\d.,]+)\s+([a-z]{3,}(?: [a-z]+)*)", text)
    if spaced:
        return spaced[1], unit or read_unit(spaced[2]), False
    return text, unit, False


def with_short_unit(expr: Expr, other: Expr) -> Expr:
    """ "2 h" beside hours: elsewhere one letter behind a number is a variable."""
    match = re.fullmatch(r"(.*\d)\s+([A-Za-z](?:\s*\^\s*\{?[23]\}?)?)", expr.text)
    if match is None or expr.unit is not None or other.unit is None or other.unit.dimension is None:
        return expr
    unit = read_unit(match[2])
    if unit.dimension != other.unit.dimension:
        return expr
    return Expr(match[1], _value(match[1]), unit)


def _value(text: str) -> Value | None:
    try:
        return read_value(text)
    except (Unreadable, ValueError, ZeroDivisionError):
        return None
