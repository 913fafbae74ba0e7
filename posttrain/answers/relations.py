"""Reading relations and regions: x = 5, x > 2, |x| < 3, intervals, unions, what is left of the line without a hole."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from posttrain.answers.agreement import converted, rounded
from posttrain.answers.expression import read_expression, with_short_unit
from posttrain.answers.notation import split_top, strip_braces
from posttrain.answers.shape import (
    INFINITY,
    MINUS_INFINITY,
    REALS,
    Either,
    Equation,
    Expr,
    Inequality,
    Named,
    Piece,
    Ratio,
    Region,
    Several,
    Shape,
    Words,
    as_region,
    complement,
    intersection,
    without,
)
from posttrain.answers.tree import GREEK

Read = Callable[[str, int], Shape]
"""(text, depth) -> shape: the reader of whole answers, which calls what stands here."""

_GREEK = "|".join(sorted(GREEK | {"pi"}, key=len, reverse=True))
_SUBSCRIPT = r"(?:_(?:\{[^{}]*(?:\{[^{}]*\})?[^{}]*\}|\\?\w+))?\s*'*"
_LETTER = rf"(?:[A-Za-z]|\\(?:{_GREEK})(?![A-Za-z])){_SUBSCRIPT}"
_NAME = re.compile(
    rf"(?:m\s*)?(?:\\(?:angle|triangle|measuredangle|overline|widehat|bar|operatorname|text)(?![A-Za-z]))?"
    rf"\s*\{{?\s*(?:{_LETTER}\s*){{1,4}}\}}?\s*(?:\^\\circ\s*)?(?:\^\s*\{{\s*-1\s*\}}\s*)?"
    r"(?:\([^()=]*\)|\[[^\[\]=]*\])?|\\frac\s*\{\s*d[^{}]*\}\s*\{\s*d[^{}]*\}"
    r"|\|\s*(?:\\overline)?\s*\{?\s*[A-Z]{1,3}\s*\}?\s*\||\[\s*[A-Z]{3,6}\s*\]|\([\sA-Za-z,\\]*,[\sA-Za-z,\\]*\)"
    r"|\\text\s*\{[^{}]*\}(?:\([^()]*\))?|[A-Za-z]{3,}(?: [A-Za-z]+)*"
)
VARIABLE = re.compile(_LETTER)
_PART = rf"(?:\\text\s*\{{[^{{}}]*\}}|\|?(?:{_LETTER}\s*){{1,4}}\|?|(?:[A-Za-z]{{2,}} ?)+)"
_QUOTIENT = re.compile(rf"\\frac\s*\{{\s*{_PART}\s*\}}\s*\{{\s*{_PART}\s*\}}|{_PART}\s*/\s*{_PART}")
"""AB/CD: the name of a ratio, as in AB/CD = 3/2."""
_LABELLED_RATIO = re.compile(rf"{_PART}(?:\s*:\s*{_PART})+")

_NUMBER_SETS = {
    r"\Z": "integers",
    r"\Q": "rational numbers",
    r"\N": "natural numbers",
    r"\C": "complex numbers",
}
_HALF_LINE = re.compile(r"\\R\s*[\^_]\s*\{?\s*(\+|-|[<>](?=\s*0)|\\[gl]e(?=\s*0))\s*0?\s*\}?")
RELATIONS = (r"\le", r"\ge", "<", ">")


def relation(text: str, depth: int, read: Read) -> Shape | None:
    named = re.fullmatch(rf"({VARIABLE.pattern})\s*\\in(?![A-Za-z])\s*(.*)", text, re.DOTALL)
    if named:
        inner = read(named[2], depth)
        region = None if isinstance(inner, Several) and inner.kind == "set" else as_region(inner)
        return replace(region, name=named[1].strip()) if region else Named(named[1].strip(), inner)
    point = re.fullmatch(
        r"(\([A-Za-z\d_{}\\\s]+(?:,[A-Za-z\d_{}\\\s]+)+\))\s*\\in(?![A-Za-z])\s*(.*)", text, re.DOTALL
    )
    if point:  # (x, y) \in {(1, 2), (3, 4)}
        return Named(re.sub(r"\s+", "", point[1]), read(point[2], depth))
    excepted = re.fullmatch(
        r"(?:\\text\s*\{)?\s*all real(?: number)?s except\s*\}?\s*(?:[a-z]\s*=)?\s*([^{}]+)\}?",
        text,
        re.IGNORECASE,
    )
    if excepted:
        return Region(without((REALS,), read_expression(excepted[1])))
    beyond = re.fullmatch(
        r"(?:\\text\s*\{)?\s*all real(?: number)?s (greater|less) than (or equal to )?\s*\}?\s*([^{}]+)\}?",
        text, re.IGNORECASE,
    )  # fmt: skip
    if beyond:
        signs = (r"\ge", r"\le") if beyond[2] else (">", "<")
        sign = signs[beyond[1].lower() == "less"]
        bounded = _inequality(f"x {sign} {beyond[3]}")
        return replace(bounded, name="") if isinstance(bounded, Region) else bounded  # x is our word
    outside = re.fullmatch(rf"({VARIABLE.pattern})\s*\\notin(?![A-Za-z])\s*(.*)", text, re.DOTALL)
    if outside:
        inside = as_region(read(outside[2], depth))
        rest = complement(inside) if inside else None
        return replace(rest, name=outside[1].strip()) if rest else None
    if re.search(r"<|>|\\[lg]e(?![A-Za-z])", text) and not text.startswith("<"):
        return _inequality(text)
    unequal = re.fullmatch(rf"({VARIABLE.pattern})\s*\\ne(?![A-Za-z])\s*(.*)", text, re.DOTALL)
    if unequal:
        holes = read(unequal[2], depth)
        pieces = (REALS,)
        for hole in holes.items if isinstance(holes, Several) else (holes,):
            pieces = without(pieces, hole if isinstance(hole, Expr) else read_expression(unequal[2]))
        return Region(pieces, unequal[1].strip())
    sides = [piece.strip() for piece, _ in split_top(text, (r"\approx",))]
    if len(sides) > 1:
        return _approximation(sides, depth, read)
    parts = [piece.strip() for piece, _ in split_top(text, ("=", r"\equiv", r"\coloneqq"))]
    if len(parts) > 1:
        return _equality([part for part in parts if part], text, depth, read)
    return None


def _approximation(sides: list[str], depth: int, read: Read) -> Shape:
    first, last = sides[0], sides[-1]
    right = read(last, depth)
    if not first:
        return right
    if first in ("+", "-"):
        return read(first + last, depth)
    if _NAME.fullmatch(first):
        return Named(first, right)
    left = read(first, depth)
    if VARIABLE.fullmatch(last) and len(sides) == 2:
        return Named(last, left)
    return Either((left, right)) if rounded(left, right) else right


def _equality(parts: list[str], text: str, depth: int, read: Read) -> Shape | None:
    if not parts:
        return None
    if len(parts) == 1:
        return read(parts[0], depth)
    first, last = parts[0], parts[-1]
    if _NAME.fullmatch(first) or _QUOTIENT.fullmatch(first):
        return Named(re.sub(r"\s+", "", first), read(last, depth))
    if _LABELLED_RATIO.fullmatch(first):
        inner = read(last, depth)
        return Named(re.sub(r"\s+", "", first), inner) if isinstance(inner, Ratio | Expr) else None
    if VARIABLE.fullmatch(last) and len(parts) == 2:
        return Named(re.sub(r"\s+", "", last), read(first, depth))
    left, right = read(first, depth), read(last, depth)
    if isinstance(left, Expr) and left.value is not None and not left.value.names:
        if isinstance(right, Expr) and converted(left, with_short_unit(right, left)):
            return Either((left, with_short_unit(right, left)))  # 12 cm = 0.12 m
        if isinstance(right, Expr) and right.value is not None and right.value.names and len(parts) == 2:
            return Equation(left, right, text)  # 7 = 11a + c
        return right  # 2 + 3 = 5
    return Equation(left, right, text)


def _inequality(text: str) -> Shape | None:
    """x > a, a < x, a < x \\le b as a region; anything longer or in two variables is left to math-verify."""
    pieces = split_top(text, RELATIONS)
    sides = [strip_braces(piece.strip()) for piece, _ in pieces]
    relations = [relation for _, relation in pieces[:-1]]
    if not relations:
        return None
    if len(sides) == 2 and sides[0].startswith("|") and sides[0].endswith("|"):
        absolute = _absolute(sides[0][1:-1].strip(), relations[0], sides[1])
        if absolute is not None:
            return absolute
    variables = [bool(VARIABLE.fullmatch(side)) for side in sides]
    if len(sides) == 2 and variables[1] and (not variables[0] or sides[1] < sides[0]):
        sides.reverse()
        relations = [{"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}[relations[0]]]
    if len(sides) == 2 and VARIABLE.fullmatch(sides[0]):
        bound, strict = read_expression(sides[1]), relations[0] in "<>"
        below = relations[0] in ("<", r"\le")
        piece = Piece(MINUS_INFINITY, bound, True, strict) if below else Piece(bound, INFINITY, strict, True)
        return Region((piece,), sides[0])
    if len(sides) == 3 and re.fullmatch(rf"{VARIABLE.pattern}(?:\(\w\))?", sides[1]):
        rising = [relation in ("<", r"\le") for relation in relations]
        if rising[0] == rising[1]:
            low, high = (0, 2) if rising[0] else (2, 0)
            opens = [relation in "<>" for relation in relations]
            low_open, high_open = (opens[0], opens[1]) if rising[0] else (opens[1], opens[0])
            return Region(
                (Piece(read_expression(sides[low]), read_expression(sides[high]), low_open, high_open),),
                sides[1],
            )
    if not all(sides):
        return Expr(text, None)
    return Inequality(tuple(read_expression(side) for side in sides), tuple(relations), text)


def _absolute(name: str, relation: str, limit: str) -> Shape | None:
    """|x| < a lies between -a and a, |x| > a outside."""
    high, low = read_expression(limit), read_expression(f"-({limit})")
    strict = relation in "<>"
    if not VARIABLE.fullmatch(name) or "|" in limit:
        return None
    if relation in ("<", r"\le"):
        return Region((Piece(low, high, strict, strict),), name)
    return Region((Piece(MINUS_INFINITY, low, True, strict), Piece(high, INFINITY, strict, True)), name)


def region(text: str, depth: int, read: Read) -> Shape | None:
    if text in (r"\R", r"(-\infty,\infty)"):
        return Region((REALS,))
    if text == r"\emptyset":
        return Several("set", ())
    half = _HALF_LINE.fullmatch(text)
    if half:
        zero, holds_zero = read_expression("0"), half[1][:1] == "\\"
        right = half[1][-1] in "+>" or half[1].startswith(r"\ge")
        return Region(
            (
                Piece(zero, INFINITY, not holds_zero, True)
                if right
                else Piece(MINUS_INFINITY, zero, True, not holds_zero),
            )
        )
    text = re.sub(r"(?<=\\R)\s*-\s*(?=\\\{|[\[(])", r"\\setminus ", text)
    minus = [piece.strip() for piece, _ in split_top(text, (r"\setminus", r"\backslash"))]
    if len(minus) == 2:
        whole, hole = as_region(read(minus[0], depth)), read(minus[1], depth)
        if whole and isinstance(hole, Several) and hole.kind == "set":
            pieces = whole.pieces
            for point in hole.items:
                if isinstance(point, Expr):
                    pieces = without(pieces, point)
            return Region(pieces)
        cut = as_region(hole)
        rest = complement(cut) if cut else None
        return intersection(whole, rest) if whole and rest else None
    both = [piece.strip() for piece, _ in split_top(text, (r"\cap",))]
    if len(both) == 2:
        first, second = (as_region(read(piece, depth)) for piece in both)
        return (intersection(first, second) or Several("set", ())) if first and second else None
    union = [piece.strip() for piece, _ in split_top(text, (r"\cup", r"\bigcup"))]
    if len(union) > 1:
        regions = [as_region(read(piece, depth)) for piece in union]
        if all(region is not None for region in regions):
            return Region(tuple(piece for region in regions if region for piece in region.pieces))
        return None
    if text in _NUMBER_SETS:
        return Words(_NUMBER_SETS[text])
    text = re.sub(r"^[a-z]\s*(?=\(.*\]$|\[.*\)$)", "", text)  # t(0,4]
    match = re.match(r"[(\[]|\]", text)
    if match and text[-1] in ")]([" and (text[0], text[-1]) not in (("(", ")"), ("[", "]")):
        inner = [piece.strip() for piece, _ in split_top(text[1:-1], (",", ";"))]
        if len(inner) == 2:
            low, high = read_expression(inner[0]), read_expression(inner[1])
            return Region((Piece(low, high, text[0] != "[", text[-1] != "]"),))
    return None
