"""Values of expressions, without a computer algebra system: fractions where exact, 50 digits elsewhere.

An expression with variables is evaluated at fixed sample points, so that two expressions are equal when they agree at
all of them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from mpmath import MPContext

from posttrain.rewards.maths.tree import Parsed, Unreadable, parse

Number = Any  # Fraction, or a real or complex number of the private mpmath context

mp: Any = MPContext()  # private: nobody else's precision is touched
mp.dps = 50

REAL_NAMES = "tuvwxyz"  # by custom real numbers, also beside a floor
MAX_BITS = 200_000  # an exact integer larger than this is not written out
FAILURES = (Unreadable, ArithmeticError, ValueError, TypeError)
"""What evaluating may raise: too large, undefined, or of a kind that an operation does not take."""

FUNCTIONS: dict[str, Callable[[Number], Number]] = {
    "sin": mp.sin, "cos": mp.cos, "tan": mp.tan, "cot": mp.cot, "sec": mp.sec, "csc": mp.csc,
    "arcsin": mp.asin, "arccos": mp.acos, "arctan": mp.atan, "arccot": mp.acot, "sinh": mp.sinh,
    "cosh": mp.cosh, "tanh": mp.tanh, "ln": mp.ln, "exp": mp.exp,
}  # fmt: skip


@dataclass(frozen=True)
class Value(Parsed):
    """An expression that can be evaluated."""

    def at(self, point: int, integers: bool = False) -> Number:
        """The value at sample point number `point`. Raises one of FAILURES."""
        return evaluate(self.tree, lambda name: sample(name, point, integers))


@lru_cache(maxsize=16384)
def read_value(text: str) -> Value:
    """Reads one expression (no relation, no list). Raises Unreadable."""
    parsed = parse(text)
    return Value(parsed.tree, parsed.names, parsed.inexact, parsed.integers)


@lru_cache(maxsize=4096)
def sample(name: str, point: int, integers: bool) -> Number:
    rng = random.Random(f"{name}/{point}")
    if integers:  # several sizes: a factorial or binomial may exist for some of them only
        between = (
            name[0] in REAL_NAMES and point % 2
        )  # floor(x) is not ceil(x), floor((n + 1)/2) is ceil(n/2)
        return Fraction(rng.randint(1, 90), 10) if between else Fraction(rng.randint(1, 9))
    sign = -1 if point % 3 == 2 else 1
    return mp.mpf(sign * rng.randint(2_000_000, 29_000_000)) / 10_000_019


def lift(x: Number) -> Number:
    return mp.mpf(x.numerator) / x.denominator if isinstance(x, Fraction) else x


def evaluate(tree: tuple, variable: Callable[[str], Number]) -> Number:
    op = tree[0]
    if op == "num":
        return tree[1]
    if op == "var":
        return variable(tree[1])
    if op in _CONSTANTS:
        return _CONSTANTS[op]
    if op == "fn":
        return FUNCTIONS[tree[1]](lift(_small(evaluate(tree[2], variable))))
    arguments = [evaluate(branch, variable) for branch in tree[1:]]
    if len(arguments) == 2 and op in _EXACT and all(isinstance(x, Fraction) for x in arguments):
        return _bounded(_EXACT[op](*arguments))
    return _OPERATIONS[op](*arguments)


def _bounded(x: Fraction) -> Fraction:
    if max(x.numerator.bit_length(), x.denominator.bit_length()) > MAX_BITS:
        raise Unreadable("number too large")
    return x


def _small(x: Number) -> Number:
    """Transcendental functions of astronomically large arguments would run for ever."""
    if abs(x) > 10**6:
        raise Unreadable("argument too large")
    return x


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(exponent, Fraction) and exponent.denominator == 1 and isinstance(base, Fraction):
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if size * abs(exponent.numerator) <= MAX_BITS:
            return base**exponent.numerator
    base, exponent = lift(base), lift(exponent)
    if base == 0:
        if mp.re(exponent) <= 0:
            raise ZeroDivisionError("zero to a power that is not positive")
        return Fraction(0)
    if abs(exponent) * (abs(mp.log(abs(base))) + 1) > 10**6:
        raise Unreadable("power too large")
    return mp.power(base, exponent)


def _root(x: Number, index: Number) -> Number:
    if isinstance(index, Fraction) and index.denominator == 1 and index > 0:
        if isinstance(x, Fraction):
            exact = _exact_root(abs(x), index.numerator)
            if exact is not None and (x >= 0 or index.numerator % 2):
                return exact if x >= 0 else -exact
        real = isinstance(x, Fraction) or not isinstance(x, mp.mpc)
        if real and x < 0 and index.numerator % 2:  # the real cube root of a negative number
            return -mp.root(-lift(x), index.numerator)
        if index == 2:
            return mp.sqrt(lift(x))
    return _power(x, 1 / lift(index))


def _exact_root(x: Fraction, n: int) -> Fraction | None:
    parts = []
    for part in (x.numerator, x.denominator):
        if part.bit_length() > 2000:
            return None
        root = math.isqrt(part) if n == 2 else round(part ** (1 / n)) if part.bit_length() < 200 else -1
        if root < 0 or n > 64 or root**n != part:
            return None
        parts.append(root)
    return Fraction(parts[0], parts[1])


def _whole(x: Number) -> int:
    if not isinstance(x, Fraction) or x.denominator != 1 or not 0 <= x <= 3000:
        raise Unreadable("a factorial or binomial of something that is not a small whole number")
    return x.numerator


def _floor(x: Number) -> Fraction:
    if isinstance(x, Fraction):
        return Fraction(math.floor(x))
    nearest = mp.nint(x)  # 1e-40 below a whole number is rounding, not the number below
    return Fraction(int(nearest if abs(x - nearest) < mp.mpf(10) ** -40 else mp.floor(x)))


_CONSTANTS = {"pi": +mp.pi, "e": mp.e + 0, "i": mp.mpc(0, 1), "inf": mp.inf}
_EXACT: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
}
_OPERATIONS: dict[str, Callable[..., Number]] = {
    "add": lambda a, b: lift(a) + lift(b),
    "sub": lambda a, b: lift(a) - lift(b),
    "mul": lambda a, b: lift(a) * lift(b),
    "div": lambda a, b: lift(a) / lift(b),
    "neg": lambda a: -a,
    "abs": abs,
    "pow": _power,
    "root": _root,
    "factorial": lambda a: _bounded(Fraction(math.factorial(_whole(a)))),
    "binom": lambda n, k: Fraction(math.comb(_whole(n), _whole(k))),
    "floor": _floor,
    "ceil": lambda a: -_floor(-a),
    "log": lambda a, b: mp.log(lift(_small(a) if not isinstance(a, Fraction) else a)) / mp.log(lift(b)),
    "log10": lambda a: mp.log10(lift(a)),
}
