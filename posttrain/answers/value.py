"""Values of expressions, without a computer algebra system: fractions where exact, 50 digits elsewhere.

An expression with variables is evaluated at fixed sample points, so that two expressions are equal when they agree at
all of them. There, roots, powers and logarithms are those of real analysis: the odd root of a negative number is
negative, its even root and its logarithm are undefined. No principal branch decides.
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

from posttrain.answers.tree import Parsed, Unreadable, has_names, parse

Number = Any  # Fraction, or a real or complex number of the private mpmath context

mp: Any = MPContext()  # private: nobody else's precision is touched
mp.dps = 50

REAL_NAMES = "tuvwxyz"  # by custom real numbers, also beside a floor
MAX_BITS = 200_000  # an exact integer larger than this is not written out
FAILURES = (Unreadable, ArithmeticError, ValueError, TypeError)
"""What evaluating may raise: too large, undefined, or of a kind that an operation does not take."""

FUNCTIONS: dict[str, Callable[[Number], Number]] = {
    "sin": mp.sin, "cos": mp.cos, "tan": mp.tan, "cot": mp.cot, "sec": mp.sec, "csc": mp.csc,
    "arctan": mp.atan, "arccot": mp.acot, "sinh": mp.sinh,
    "cosh": mp.cosh, "tanh": mp.tanh, "exp": mp.exp,
}  # fmt: skip


@dataclass(frozen=True)
class Value(Parsed):
    """An expression that can be evaluated."""

    def at(self, point: int, integers: bool = False) -> Number:
        """The value at sample point number `point`. Raises one of FAILURES."""
        return evaluate(self.tree, lambda name: sample(name, point, integers))


class Undefined(ArithmeticError):
    """Not a real number: the logarithm of a negative one, say, for which complex analysis has many values."""


@lru_cache(maxsize=16384)
def read_value(text: str) -> Value:
    """Reads one expression (no relation, no list). Raises Unreadable."""
    parsed = parse(text)
    return Value(parsed.tree, parsed.names, parsed.inexact, parsed.integers)


@lru_cache(maxsize=8192)
def sample(name: str, point: int, integers: bool) -> Number:
    """Some number for a variable. Later points lie further out and closer to zero than the first, for expressions that
    are defined there only: ln(x - 20), arcsin x."""
    rng = random.Random(f"{name}/{point}")
    if integers:  # several sizes: a factorial or binomial may exist for some of them only
        between = (
            name[0] in REAL_NAMES and point % 2
        )  # floor(x) is not ceil(x), floor((n + 1)/2) is ceil(n/2)
        return Fraction(rng.randint(1, 90), 10) if between else Fraction(rng.randint(1, 9))
    sign = (1, 1, -1, rng.choice((-1, 1)))[point % 4]  # all negative, then some: x|y| is not |x|y
    scale = _SCALES[point // 4 % len(_SCALES)]
    return scale * mp.mpf(sign * rng.randint(2_000_000, 29_000_000)) / 10_000_019


_SCALES = (mp.mpf(1), mp.mpf("0.3"), mp.mpf(12), mp.mpf("0.05"), mp.mpf(90))


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
        inner = evaluate(tree[2], variable)
        return FUNCTIONS[tree[1]](lift(inner if tree[1] == "ln" else _small(inner)))
    if op == "apply":
        return _unknown_function(tree[1], lift(_small(evaluate(tree[2], variable))))
    arguments = [evaluate(branch, variable) for branch in tree[1:]]
    if len(arguments) == 2 and op in _EXACT and all(isinstance(x, Fraction) for x in arguments):
        return _bounded(_EXACT[op](*arguments))
    result = _OPERATIONS[op](*arguments)
    if op in ("root", "pow") and not _is_real(result) and _is_real(arguments[0]) and has_names(tree[1]):
        raise Undefined("the square root of a negative number, where a variable decides about its sign")
    return result


def _unknown_function(letter: str, x: Number) -> Number:
    """Some function of that letter, of which no identity holds that does not hold for all: f(x + 1) is f(1 + x)."""
    rate = sample(f"rate of {letter}", 0, False)
    return mp.sin(rate * x + sample(f"phase of {letter}", 0, False)) + x * x * rate / 7


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
    if lift(base) == 0:
        if mp.re(lift(exponent)) <= 0:
            raise ZeroDivisionError("zero to a power that is not positive")
        return Fraction(0)
    if abs(lift(exponent)) * (abs(mp.log(abs(lift(base)))) + 1) > 10**6:
        raise Unreadable("power too large")
    if isinstance(exponent, Fraction) and exponent.denominator > 1 and not _is_positive(base):
        return _power(_root(base, Fraction(exponent.denominator)), Fraction(exponent.numerator))
    whole = isinstance(exponent, Fraction) and exponent.denominator == 1
    if not whole and not _is_positive(base):
        raise Undefined("a power of a negative or complex number that is no fraction")
    return mp.power(lift(base), lift(exponent))


def _root(x: Number, index: Number) -> Number:
    """The real root. Of a negative number: the odd ones, and the square root as a multiple of i."""
    if not isinstance(index, Fraction) or index.denominator != 1 or index <= 0:
        return _power(x, 1 / index if isinstance(index, Fraction) else 1 / lift(index))
    if isinstance(x, Fraction):
        exact = _exact_root(abs(x), index.numerator)
        if exact is not None and (x >= 0 or index.numerator % 2):
            return exact if x >= 0 else -exact
    if _is_positive(x):
        return mp.root(mp.re(lift(x)), index.numerator)
    if _is_real(x) and index.numerator % 2:
        return -mp.root(-mp.re(lift(x)), index.numerator)
    if _is_real(x) and index == 2:
        return mp.sqrt(mp.mpc(lift(x)))  # sqrt(-3) is i sqrt(3); sqrt(x) is undefined below 0, see `evaluate`
    raise Undefined("an even root of a negative number, or a root of a complex one")


def _log(x: Number) -> Number:
    if not _is_positive(x):
        raise Undefined("the logarithm of a number that is not positive")
    return mp.ln(mp.re(lift(x)))


def _is_real(x: Number) -> bool:
    return (
        isinstance(x, Fraction) or not isinstance(x, mp.mpc) or abs(x.imag) <= abs(x.real) * mp.mpf(10) ** -40
    )


def _is_positive(x: Number) -> bool:
    return _is_real(x) and mp.re(lift(x)) > 0


def _within(function: Callable[[Number], Number]) -> Callable[[Number], Number]:
    """An inverse sine or cosine, which beyond [-1, 1] would be complex."""

    def checked(x: Number) -> Number:
        if not _is_real(x) or abs(x) > 1:
            raise Undefined("an inverse sine or cosine beyond 1")
        return function(x)

    return checked


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
    "log": lambda a, b: _log(a) / _log(b),
    "log10": lambda a: _log(a) / _log(Fraction(10)),
}
FUNCTIONS |= {"ln": _log, "arcsin": _within(mp.asin), "arccos": _within(mp.acos)}
