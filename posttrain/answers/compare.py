"""Whether two values are the same number, the same expression, the same curve."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from posttrain.answers.value import FAILURES, Number, Value, evaluate, lift, mp, sample

POINTS = 4
TRIED_POINTS = 20  # for expressions that few numbers define
INTEGER_POINTS = 12
ROUNDING = Fraction(1, 10**6)


def agree(a: Number, b: Number, inexact: bool, rel_tol: float = 0.0, abs_tol: float = 0.0) -> bool:
    """Whether two numbers are the same: exactly, to 30 digits, or (a decimal among them) to six decimals.

    Below 0.1 the allowance shrinks with the number: 1e-8 is not 2e-8.
    """
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        if a == b:
            return True
        inexact = inexact and not (_is_decimal(a) and _is_decimal(b))  # 0.9999999 is not 1
        if not inexact and not rel_tol and not abs_tol:
            return False
    a, b = lift(a), lift(b)
    if mp.isinf(a) or mp.isinf(b):
        return bool(a == b)
    if mp.isnan(a) or mp.isnan(b):
        return False
    difference, size = abs(a - b), abs(a)
    if difference <= max(size, abs(b)) * mp.mpf(10) ** -30 or max(size, abs(b)) < mp.mpf(10) ** -40:
        return True
    slack = max(rel_tol * size, mp.mpf(abs_tol))
    if inexact:
        slack = max(slack, lift(ROUNDING) * min(mp.mpf(1), 10 * size))
    return bool(difference <= slack)


def _is_decimal(x: Fraction) -> bool:
    """Whether a few decimals write the number out, so that nobody has to round it."""
    return 10**12 % x.denominator == 0  # beyond it stands what a computer's floats leave: 0.30000000000000004


def same_value(a: Value, b: Value, rel_tol: float = 0.0, abs_tol: float = 0.0) -> bool | None:
    """Whether two expressions are equal: as numbers, or at every sample point. None if that cannot be told."""
    inexact = a.inexact or b.inexact
    if not a.names and not b.names:
        try:
            return agree(a.at(0), b.at(0), inexact, rel_tol, abs_tol)
        except FAILURES:
            return None
    integers = a.integers or b.integers
    compared = 0
    for point in range(INTEGER_POINTS if integers else TRIED_POINTS):
        try:
            x, y = a.at(point, integers), b.at(point, integers)
        except FAILURES:
            continue  # only values that both have speak: log(x^2) is 2 log x where both exist
        if not agree(x, y, inexact):
            return False
        compared += 1
        if compared == POINTS and not integers:
            break
    return True if compared >= 2 else None


def same_curve(a: Value, b: Value) -> bool:
    """Whether a = 0 and b = 0 have the same solutions: one is a constant times the other, or, where both are linear
    in some variable, each vanishes at the other's solutions."""
    ratios = []
    for point in range(TRIED_POINTS):
        try:
            ratios.append(a.at(point) / b.at(point))
        except FAILURES:
            continue
        if len(ratios) == POINTS:
            break
    if len(ratios) >= 2 and all(agree(ratio, ratios[0], a.inexact or b.inexact) for ratio in ratios[1:]):
        return ratios[0] != 0
    return a.names == b.names and _vanishes(a, b) and _vanishes(b, a)


def _vanishes(a: Value, b: Value) -> bool:
    """Whether `a` is zero at solutions of b = 0, found through a variable in which `b` is linear."""
    for name in sorted(b.names):
        compared = 0
        for point in range(POINTS):
            try:
                at = [evaluate(b.tree, _with(name, Fraction(x), point)) for x in range(3)]
                slope = at[1] - at[0]
                if not agree(at[2] - at[1], slope, False) or slope == 0:
                    break
                root = -lift(at[0]) / lift(slope)
                value = evaluate(a.tree, _with(name, root, point))
                scale = evaluate(a.tree, _with(name, root + 1, point))
            except FAILURES:
                continue
            if abs(lift(value)) > abs(lift(scale)) * mp.mpf(10) ** (-5 if a.inexact or b.inexact else -25):
                return False
            compared += 1
        if compared >= 2:
            return True
    return False


def _with(name: str, x: Number, point: int) -> Callable[[str], Number]:
    return lambda other: x if other == name else sample(other, point, False)


def _is_complex(x: Number) -> bool:
    return isinstance(x, mp.mpc) and abs(x.imag) > abs(x.real) * mp.mpf(10) ** -30


def number_of(value: Value) -> Number | None:
    """The number an expression without variables stands for, or None."""
    if value.names:
        return None
    try:
        return value.at(0)
    except FAILURES:
        return None


def real_of(value: Value) -> Number | None:
    """The real number (of mpmath, infinities included) an expression stands for, or None."""
    number = number_of(value)
    if number is None or _is_complex(number):
        return None
    number = mp.re(lift(number))
    return None if mp.isnan(number) else number


def canonical_value(value: Value) -> str | None:
    """A string that equal expressions share: a fraction where the value is rational, 20 digits elsewhere."""
    try:
        samples = [
            value.at(point, value.integers) for point in range(4 if value.integers and value.names else 1)
        ]
    except FAILURES:
        return None
    label = f"[{','.join(sorted(value.names))}]" if value.names else ""
    return label + ",".join(map(_digits, samples))


def _digits(x: Number) -> str:
    if isinstance(x, Fraction):
        if max(x.numerator.bit_length(), x.denominator.bit_length()) > 1000:
            return f"~{mp.nstr(lift(x), 40)}"
        return str(x)
    if not mp.isinf(x) and not _is_complex(x):
        nearest = mp.nint(x.real)
        if abs(x - nearest) < mp.mpf(10) ** -30 and abs(nearest) < 10**25:
            return str(int(nearest))
    return f"~{mp.nstr(mp.mpmathify(x), 20)}"
