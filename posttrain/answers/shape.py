"""The shape of an answer: a number or expression, words, a tuple, a set, a region of the line, a matrix, an equation.

Shapes decide what order and brackets mean. (1, 2) is ordered and may be an open interval; {1, 2} and a bare list are
not ordered; x > 2, (2, \\infty) and x \\in (2, \\infty) are one region.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from posttrain.answers.compare import real_of
from posttrain.answers.units import Unit
from posttrain.answers.value import Number, Value, read_value


@dataclass(frozen=True)
class Expr:
    """A number or expression. `value` is None where only math-verify may understand it."""

    text: str
    value: Value | None
    unit: Unit | None = None
    percent: bool = False
    base: str = ""
    digits: int | None = None  # decimals given before "..."


@dataclass(frozen=True)
class Words:
    text: str  # lower case, single spaces, no articles
    number: int | None = None  # what the words spell: forty-two


@dataclass(frozen=True)
class Named:
    name: str
    inner: Shape


@dataclass(frozen=True)
class Equation:
    left: Shape
    right: Shape
    text: str


@dataclass(frozen=True)
class Several:
    """Several answers: a bare list or a set (no order), a tuple (order)."""

    kind: Literal["list", "set", "tuple", "bracket"]
    items: tuple[Shape, ...]
    number: Expr | None = None  # "100,200" may also be one number


@dataclass(frozen=True)
class Piece:
    low: Expr
    high: Expr
    low_open: bool
    high_open: bool


@dataclass(frozen=True)
class Region:
    """Part of the real line, a union of intervals and points."""

    pieces: tuple[Piece, ...]
    name: str = ""


@dataclass(frozen=True)
class Matrix:
    rows: tuple[tuple[Shape, ...], ...]


@dataclass(frozen=True)
class Ratio:
    terms: tuple[Expr, ...]


@dataclass(frozen=True)
class Inequality:
    """Sides and the relations between them, where that is no interval as it stands: |x - 2| < 3, x + y > 1."""

    sides: tuple[Expr, ...]
    relations: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Either:
    """Two ways of giving one answer: exact and rounded, a choice's letter and its content."""

    options: tuple[Shape, ...]


Shape = Expr | Words | Named | Equation | Several | Region | Matrix | Ratio | Inequality | Either

INFINITY = Expr(r"\infty", read_value(r"\infty"))
MINUS_INFINITY = Expr(r"-\infty", read_value(r"-\infty"))
REALS = Piece(MINUS_INFINITY, INFINITY, True, True)


def leaves(shape: Shape) -> list[Shape]:
    if isinstance(shape, Either):
        return [leaf for option in shape.options for leaf in leaves(option)]
    if isinstance(shape, Named):
        return leaves(shape.inner)
    if isinstance(shape, Several):
        return [leaf for item in shape.items for leaf in leaves(item)]
    if isinstance(shape, Matrix):
        return [leaf for row in shape.rows for cell in row for leaf in leaves(cell)]
    if isinstance(shape, Region):
        return [end for piece in shape.pieces for end in (piece.low, piece.high)]
    if isinstance(shape, Ratio):
        return list(shape.terms)
    if isinstance(shape, Inequality):
        return list(shape.sides)
    return [shape]


def as_region(shape: Shape) -> Region | None:
    """The region a shape may stand for: (a, b) and [a, b] as intervals, a set as points."""
    if isinstance(shape, Region):
        return shape
    if isinstance(shape, Named):
        return as_region(shape.inner)
    if isinstance(shape, Several):
        items = [item for item in shape.items if isinstance(item, Expr)]
        if shape.kind == "list":
            return _listed_region(shape.items)
        if len(items) != len(shape.items):
            return None
        if shape.kind in ("tuple", "bracket") and len(items) == 2:
            opened = shape.kind == "tuple"
            return Region((Piece(items[0], items[1], opened, opened),))
        if shape.kind == "set" and items:
            return Region(tuple(Piece(item, item, False, False) for item in items))
    return None


def _listed_region(items: tuple[Shape, ...]) -> Region | None:
    """x = 1 or x > 3, or several intervals: their union, where all speak of one variable."""
    regions: list[Region] = []
    for item in items:
        inner = item.inner if isinstance(item, Named) else item
        region = Region((Piece(inner, inner, False, False),)) if isinstance(inner, Expr) else as_region(inner)
        if region is None:
            return None
        regions.append(replace(region, name=item.name) if isinstance(item, Named) else region)
    names = {region.name for region in regions if region.name}
    if len(names) > 1:
        return None
    return Region(tuple(piece for region in regions for piece in region.pieces), "".join(names))


def complement(region: Region) -> Region | None:
    """What of the line is left; None where an end is no number."""
    if any(_ends(piece) is None for piece in region.pieces):
        return None
    left, low, low_open = [], MINUS_INFINITY, True
    for piece in merged(region.pieces):
        if bound(piece.low) != bound(MINUS_INFINITY):
            left.append(Piece(low, piece.low, low_open, not piece.low_open))
        low, low_open = piece.high, not piece.high_open
    if bound(low) != bound(INFINITY):
        left.append(Piece(low, INFINITY, low_open, True))
    return Region(tuple(left))


def intersection(first: Region, second: Region) -> Region | None:
    """What both hold; None where that is empty or cannot be told."""
    common = _common(first.pieces, second.pieces)
    return Region(common, first.name or second.name) if common else None


def without(pieces: tuple[Piece, ...], point: Expr) -> tuple[Piece, ...]:
    """The pieces with one point cut out; a point whose place cannot be told is cut from the last."""
    result = []
    for piece in pieces:
        low, high, at = bound(piece.low), bound(piece.high), bound(point)
        inside = at is None or low is None or high is None or low < at < high
        result += (
            [Piece(piece.low, point, piece.low_open, True), Piece(point, piece.high, True, piece.high_open)]
            if inside
            else [piece]
        )
    return tuple(result)


def bound(expr: Expr) -> Number | None:
    """The real number an end of an interval stands for, or None."""
    return real_of(expr.value) if expr.value else None


def _ends(piece: Piece) -> tuple[Number, Number] | None:
    low, high = bound(piece.low), bound(piece.high)
    return None if low is None or high is None else (low, high)


def combined(items: tuple[Region, ...], intersect: bool, either: bool) -> Shape | None:
    """x < 2 or x > 3: the union. x > 2 and x < 3: what all allow; a comma means that too where it is not empty."""
    union = Region(tuple(piece for item in items for piece in item.pieces), items[0].name)
    if not intersect and not either:
        return union
    common = items[0].pieces
    for item in items[1:]:
        common = _common(common, item.pieces)
    return Region(common, items[0].name) if common else union


def _common(first: tuple[Piece, ...], second: tuple[Piece, ...]) -> tuple[Piece, ...]:
    return tuple(piece for a in first for b in second if (piece := _intersection(a, b)) is not None)


def _intersection(a: Piece, b: Piece) -> Piece | None:
    first, second = _ends(a), _ends(b)
    if first is None or second is None:
        return None
    low, at_low = max((first[0], a.low_open, 0), (second[0], b.low_open, 1))[2], max(first[0], second[0])
    high, at_high = (
        min((first[1], not a.high_open, 0), (second[1], not b.high_open, 1))[2],
        min(first[1], second[1]),
    )
    if at_low >= at_high:
        return None
    left, right = (a, b)[low], (a, b)[high]
    return Piece(left.low, right.high, left.low_open, right.high_open)


def merged(pieces: tuple[Piece, ...]) -> list[Piece]:
    """Pieces from left to right, those that touch joined; as they stand where an end is no number."""
    placed = [(ends, piece) for piece in pieces if (ends := _ends(piece)) is not None]
    if len(placed) < len(pieces):
        return list(pieces)
    placed.sort(key=lambda entry: (entry[0][0], entry[1].low_open))
    result: list[tuple[tuple[Number, Number], Piece]] = []
    for ends, piece in placed:
        if not result or not _touch(result[-1], (ends, piece)):
            result.append((ends, piece))
            continue
        (low, high), last = result[-1]
        further = ends[1] > high
        is_open = piece.high_open if further else last.high_open and (ends[1] < high or piece.high_open)
        joined = Piece(last.low, piece.high if further else last.high, last.low_open, is_open)
        result[-1] = ((low, max(high, ends[1])), joined)
    return [piece for _, piece in result]


def _touch(left: tuple[tuple[Number, Number], Piece], right: tuple[tuple[Number, Number], Piece]) -> bool:
    """Whether two pieces, the left one first, overlap or share an end that one of them holds."""
    (_, high), last = left
    (low, _), piece = right
    return low < high or low == high and not (last.high_open and piece.low_open)
