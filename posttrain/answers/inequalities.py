"""Inequalities that are no interval as they stand: -x > -1, |x - 2| < 3, f(2) < f(1) < f(4), x + y >= 1."""

from __future__ import annotations

from collections.abc import Callable

from posttrain.answers.compare import POINTS, TRIED_POINTS, agree, real_of
from posttrain.answers.shape import Expr, Inequality, Piece, Region, bound, merged
from posttrain.answers.value import FAILURES, Number, Value, evaluate, lift, mp, read_value

_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
_HOLDS: dict[str, Callable[[Number, Number], bool]] = {
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    r"\le": lambda a, b: a <= b,
    r"\ge": lambda a, b: a >= b,
}
_STEPS = 16  # numbers tried between two ends of a region


def same_inequality(gold: Inequality, answer: Inequality, same: Callable[[Expr, Expr], bool]) -> bool:
    """Whether two inequalities say the same: side by side, read backwards, or multiplied by a constant."""
    for other in (answer, _backwards(answer)):
        if gold.relations == other.relations and all(map(same, gold.sides, other.sides)):
            return True
    first, second = _difference(gold), _difference(answer)
    if first is None or second is None or first[1] != second[1]:
        return False
    return _positive_multiple(first[0], second[0])


def inequality_is_region(inequality: Inequality, region: Region) -> bool:
    """Whether the numbers for which an inequality holds are those of a region.

    Every end of the region is tried, and numbers between the ends and beyond them.
    """
    values = [side.value for side in inequality.sides]
    if any(value is None for value in values):
        return False
    names = {name for value in values if value for name in value.names}
    if len(names) != 1 or region.name and region.name not in names:
        return False
    ends = sorted({end for piece in region.pieces for end in _finite_ends(piece)})
    if not ends or any(_unknown(piece) for piece in region.pieces):
        return False
    (name,) = names
    tried = 0
    for number in _numbers(ends):
        held = _holds(inequality, name, number)
        if held is None:
            held = False  # where a side is undefined, nothing holds
        else:
            tried += 1
        if held != _contains(region, number):
            return False
    return tried >= _STEPS


def _backwards(inequality: Inequality) -> Inequality:
    return Inequality(
        inequality.sides[::-1], tuple(_FLIPPED[sign] for sign in inequality.relations[::-1]), inequality.text
    )


def _difference(inequality: Inequality) -> tuple[Value, bool] | None:
    """(larger side - smaller side, whether they may be equal) of an inequality with two sides."""
    if len(inequality.sides) != 2:
        return None
    left, right = inequality.sides
    sign = inequality.relations[0]
    if left.value is None or right.value is None:
        return None
    larger, smaller = (left, right) if sign in (">", r"\ge") else (right, left)
    try:
        return read_value(f"({larger.text})-({smaller.text})"), sign in (r"\le", r"\ge")
    except FAILURES:
        return None


def _positive_multiple(a: Value, b: Value) -> bool:
    ratios = []
    for point in range(TRIED_POINTS):
        try:
            ratios.append(a.at(point) / b.at(point))
        except FAILURES:
            continue
        if len(ratios) == POINTS:
            break
    alike = len(ratios) >= 2 and all(agree(ratio, ratios[0], a.inexact or b.inexact) for ratio in ratios)
    return alike and not isinstance(ratios[0], mp.mpc) and ratios[0] > 0 and a.names == b.names


def _finite_ends(piece: Piece) -> list[Number]:
    found = (bound(piece.low), bound(piece.high))
    return [end for end in found if end is not None and not mp.isinf(end)]


def _unknown(piece: Piece) -> bool:
    return bound(piece.low) is None or bound(piece.high) is None


def _numbers(ends: list[Number]) -> list[Number]:
    """The ends, numbers between each two of them, close to them and far beyond."""
    numbers = list(ends)
    for low, high in zip(ends, ends[1:], strict=False):
        numbers += [low + (high - low) * step / (_STEPS + 1) for step in range(1, _STEPS + 1)]
    for step in range(1, _STEPS + 1):
        distance = mp.mpf(step * step) / 7
        numbers += [ends[0] - distance, ends[-1] + distance]
    return [*numbers, ends[0] - 10**4, ends[-1] + 10**4]


def _holds(inequality: Inequality, name: str, number: Number) -> bool | None:
    try:
        sides = [evaluate(side.value.tree, lambda _: number) for side in inequality.sides if side.value]
    except FAILURES:
        return None
    reals = [lift(side) for side in sides]
    if any(isinstance(side, mp.mpc) for side in reals):
        return None
    tiny = mp.mpf(10) ** -35  # an end that is a root is met up to rounding only
    for left, sign, right in zip(reals, inequality.relations, reals[1:], strict=False):
        equal = abs(left - right) <= tiny * (1 + abs(left))
        if equal and sign in "<>" or not equal and not _HOLDS[sign](left, right):
            return False
    return True


def _contains(region: Region, number: Number) -> bool:
    tiny = mp.mpf(10) ** -35 * (1 + abs(number))
    for piece in merged(region.pieces):
        low, high = real_of_end(piece.low), real_of_end(piece.high)
        at_low, at_high = abs(number - low) <= tiny, abs(number - high) <= tiny
        if at_low and not piece.low_open or at_high and not piece.high_open:
            return True
        if not at_low and not at_high and low < number < high:
            return True
    return False


def real_of_end(end: Expr) -> Number:
    number = real_of(end.value) if end.value else None
    return mp.nan if number is None else number
