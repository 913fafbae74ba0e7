"""Units behind a number: which there are, how they convert, and how to read them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from posttrain.answers.notation import CURRENCY


@dataclass(frozen=True)
class Unit:
    """`factor` in base units and `dimension`; both None for words that are no unit known here ("clips")."""

    factor: Fraction | None
    dimension: tuple[tuple[str, int], ...] | None


_NAMES: dict[str, tuple[str, str, int]] = {
    "mm millimeter millimetre": ("length", "0.001", 1),
    "cm centimeter centimetre": ("length", "0.01", 1),
    "dm decimeter decimetre": ("length", "0.1", 1),
    "m meter metre": ("length", "1", 1),
    "km kilometer kilometre": ("length", "1000", 1),
    "in inch inches inche": ("length", "0.0254", 1),
    "ft foot feet": ("length", "0.3048", 1),
    "yd yard": ("length", "0.9144", 1),
    "mi mile": ("length", "1609.344", 1),
    "l L liter litre": ("length", "0.001", 3),
    "ml milliliter millilitre": ("length", "0.000001", 3),
    "s sec second": ("time", "1", 1),
    "min minute": ("time", "60", 1),
    "h hr hour": ("time", "3600", 1),
    "day": ("time", "86400", 1),
    "week": ("time", "604800", 1),
    "month": ("month", "1", 1),
    "year yr": ("month", "12", 1),
    "mg milligram": ("mass", "0.001", 1),
    "g gram": ("mass", "1", 1),
    "kg kilogram": ("mass", "1000", 1),
    "lb pound": ("pound", "1", 1),
    "oz ounce": ("ounce", "1", 1),
    "cent ¢": ("money", "0.01", 1),
    f"dollar buck usd {CURRENCY}": ("money", "1", 1),
    "degree deg": ("degree", "1", 1),
    "radian rad": ("radian", "1", 1),
}  # fmt: skip
UNITS: dict[str, tuple[str, Fraction, int]] = {
    name: (dimension, Fraction(factor), power)
    for names, (dimension, factor, power) in _NAMES.items()
    for name in names.split()
}
MULTIPLES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
UNITS |= {name + "s": unit for name, unit in UNITS.items() if len(name) > 2 and not name.endswith("s")}
_COMPOUND = {"mph": ("mi", "h"), "kph": ("km", "h"), "kmph": ("km", "h")}
BARE = sorted(
    (n for n in UNITS if len(n) > 1 and n.isalpha() and n not in ("in", "min")), key=len, reverse=True
)
"""Units recognised behind a number without \\text; a single letter there is a variable."""


@lru_cache(maxsize=4096)
def read_unit(text: str) -> Unit:
    """The unit in `text`, such as `\\text{ cm}^2`, `square inches`, `km/h`, `dollars per hour`."""
    words = re.sub(r"\\text\s*\{([^{}]*)\}", lambda match: f" {match[1].strip()}", text)
    words = (
        re.sub(r"\^\s*\{?\s*(-?\d+)\s*\}?", r"^\1", words)
        .replace("\\cdot", " ")
        .replace("^\\circ", " degree ")
    )
    words = re.sub(r"\b(?:per|a|an)\b", "/", words).replace("/", " / ").replace("{", " ").replace("}", " ")
    factor, dimension, sign, prefix = Fraction(1), {}, 1, 1
    tokens = words.replace(".", "").replace("~", " ").split()
    for position, token in enumerate(tokens):
        name, _, power = token.partition("^")
        name = name if len(name) == 1 else name.lower()
        if token == "/":
            sign = -1
            continue
        if name in ("square", "sq", "squared", "cubic", "cubed", "cu"):
            prefix = 2 if name.startswith("sq") else 3
            if not name.endswith("ed"):
                continue
            if not position:
                return Unit(None, None)
            name, power, token = tokens[position - 1].lower(), str(prefix - 1), ""
        for part, direction in zip(_COMPOUND.get(name, (name,)), (1, -1), strict=False):
            known = UNITS.get(part)
            if known is None or power and not re.fullmatch(r"-?\d", power):
                return Unit(None, None)
            exponent = sign * direction * (int(power) if power else prefix if token else 1)
            base, size, inner = known
            dimension[base] = dimension.get(base, 0) + inner * exponent
            factor *= size**exponent
        prefix = 1
    if not tokens:
        return Unit(None, None)
    return Unit(factor, tuple(sorted((k, v) for k, v in dimension.items() if v)))
