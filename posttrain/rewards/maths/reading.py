"""Reading the shape of an answer, one reader after another: words, lists, relations, brackets, and so on."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from typing import Literal

from posttrain.rewards.maths.expression import WORD_NUMBERS, read_expression
from posttrain.rewards.maths.notation import CURRENCY, closing, split_top, strip_braces, tidy
from posttrain.rewards.maths.shape import (
    INFINITY,
    MINUS_INFINITY,
    REALS,
    Either,
    Equation,
    Expr,
    Group,
    Matrix,
    Named,
    Piece,
    Ratio,
    Region,
    Shape,
    Words,
    as_region,
    combined,
    without,
)
from posttrain.rewards.maths.tree import GREEK

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
_VARIABLE = re.compile(_LETTER)

_SYNONYMS = {
    "no solution": r"\emptyset", "no solutions": r"\emptyset", "none": r"\emptyset", "empty set": r"\emptyset",
    "no real solution": r"\emptyset", "no real solutions": r"\emptyset", "does not exist": "dne",
    "all real numbers": r"\R", "all reals": r"\R", "infinite": r"\infty", "infinity": r"\infty",
}  # fmt: skip
_SHORT = "yes no odd even one two six ten all both none true dne"
_SHORT_WORDS = frozenset(_SHORT.split())
_RELATIONS = (r"\le", r"\ge", "<", ">")
_PREAMBLE = re.compile(
    r"^(?:\\text\s*\{)?\s*(?:so,?\s+|thus,?\s+|therefore,?\s+)?(?:the\s+)?(?:final\s+)?"
    r"(?:answer|solution|result)s?(?:\s+(?:is|are))?\s*:?\s*(?:\}|(?=\s))\s*(?:=\s*)?",
    re.IGNORECASE,
)
_CONDITION = re.compile(
    r"\s*(?:[,;]|\\quad)?\s*(?:\\text\s*\{\s*,?\s*(?:where|for|with|if|when|such that|for all|for any|for some)\b.*"
    r"|\b(?:where|for (?:all|any|some|every)|such that)\b.*|\\forall.*"
    r"|[,;(]\s*(?:[a-zA-Z]|\\text\{\s*(?:for|where)[^{}]*\}\s*[a-zA-Z]?)\s*\\in\s*\\[NZQRC]\b.*)$",
    re.DOTALL,
)


@lru_cache(maxsize=16384)
def read_shape(text: str) -> Shape:
    """The shape of an answer given in LaTeX or plain writing."""
    return _read(tidy(text), 0)


def _read(text: str, depth: int) -> Shape:
    text = strip_braces(text)
    if depth > 8:
        return Expr(text, None)
    for reader in (
        _words,
        _choice,
        _trimmed,
        _matrix,
        _listed,
        _relation,
        _region,
        _bracketed,
        _plus_minus,
        _ratio,
    ):
        shape = reader(text, depth + 1)
        if shape is not None:
            return shape
    return read_expression(text)


# ---- words ----------------------------------------------------------------------------------------


def _plain(text: str) -> str:
    """Words without markup, case, articles and punctuation at the ends."""
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text).lower()
    text = re.sub(r"\b([ap])\.\s*m\b\.?", r"\1m", text)
    return re.sub(r"^(?:the|a|an) ", "", re.sub(r"\s+", " ", text).strip(" .,;:!"))


def _words(text: str, depth: int) -> Shape | None:
    whole = re.fullmatch(r"\\text\s*\{([^{}]*)\}", text)
    bare = re.fullmatch(r"[A-Za-z](?:[A-Za-z' ]|(?<=[A-Za-z])-(?=[A-Za-z]))*[A-Za-z]", text)
    clock = re.fullmatch(r"\s*\d{1,2}(?::\d\d)?\s*[ap]\.?\s?m\b[.\s]*", _connectors(text), re.IGNORECASE)
    if clock:
        return Words(_plain(text).replace(" ", ""))
    if whole:
        inner = whole[1].strip()
        if re.fullmatch(r"\(?[A-Za-z]\)?\.?", inner):
            return Words(inner.strip("().").lower()) if inner[0] == "(" or inner.isupper() else None
        if re.search(r"[\d=<>+*/^\\]", inner) and not re.search(r"[A-Za-z]{2}.*\d.*[A-Za-z]{2}", inner):
            return _read(inner, depth)
    elif bare:
        word = text.lower()
        if len(word) < 4 and word not in _SHORT_WORDS or re.fullmatch(r"[A-Za-z]( [A-Za-z])+", text):
            return None
        if len(word) <= 6 and text.isupper():  # a product of segments or points: ABCD
            return None
    elif not re.fullmatch(r"(?:\\text\s*\{[^{}]*\}|[A-Za-z' .,-])+", text) or r"\text" not in text:
        return None
    plain = re.sub(r"^(?:option|choice) \(?([a-z])\)?$", r"\1", _plain(text))
    if plain in WORD_NUMBERS:
        return read_expression(WORD_NUMBERS[plain])
    if plain in _SYNONYMS:
        return Words("dne") if plain == "does not exist" else _read(_SYNONYMS[plain], depth)
    connected = re.split(r"\s*(?:,| and | or )\s*", _connectors(text).strip())
    if len(connected) > 1 and all(len(part) < 3 for part in connected):  # "A and C" is a list of choices
        return Group("list", tuple(Words(part.lower()) for part in connected))
    return Words(plain)


def _connectors(text: str) -> str:
    return re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)


def _choice(text: str, depth: int) -> Shape | None:
    r"""(C), or a choice's letter in front of its content: \textbf{(C)} 15."""
    text = re.sub(r"^\(\s*\\text\s*\{\s*([A-Z])\s*\}\s*\)", r"(\1)", text)
    match = re.fullmatch(r"(?:\\text\s*)?\{?\s*\(\s*([A-Z])\s*\)\s*\}?\s*(.*)", text, re.DOTALL)
    if match is None:
        match = re.fullmatch(r"\\text\s*\{\s*\(?([A-Z])\s*[).:]\s*\}\s*(.*)", text, re.DOTALL)
    if match is None:
        match = re.fullmatch(r"\\text\s*\{\s*\(?([A-Z])\)\s*(\S.*)\}", text, re.DOTALL)
    if match is None or match[2][:1] in tuple("=+-*/^_<>,!"):
        return None
    letter = Words(match[1].lower())
    return Either((letter, _read(match[2].strip(), depth))) if match[2].strip() else letter


def _trimmed(text: str, depth: int) -> Shape | None:
    """Without a preamble ("the answer is") and without conditions ("where k is an integer")."""
    rest = _CONDITION.sub("", _PREAMBLE.sub("", text)).strip()
    if rest != text and rest:
        return _read(tidy(rest), depth)
    return None


# ---- lists, brackets, matrices --------------------------------------------------------------------


def _matrix(text: str, depth: int) -> Shape | None:
    cases = re.fullmatch(r"\\?\{?\s*\\begin\s*\{cases\}([^&]*)\\end\s*\{cases\}", text)
    if cases:
        return _read(tidy(cases[1].replace("\\\\", ", ")), depth)
    match = re.fullmatch(
        r"[(\[]?\s*\\begin\s*\{([pbB]?matrix|smallmatrix|array)\}(?:\s*\{[clr|\s]*\})?(.*)\\end\s*\{\1\}\s*[)\]]?",
        text, re.DOTALL,
    )  # fmt: skip
    if match is None:
        return None
    rows = [re.sub(r"^\s*\[[\d.]+\s*\w*\]", "", row) for row in match[2].split("\\\\")]
    cells = [
        tuple(_read(tidy(cell), depth) for cell in row.split("&")) for row in rows if row.strip(" \\hline")
    ]
    return Matrix(tuple(cells)) if cells else None


_AND = (
    r"\\text\s*\{\s*,?\s*(?:and|&)\s*\}|\\land(?![A-Za-z])|\\wedge(?![A-Za-z])|(?<![A-Za-z])and(?![A-Za-z])"
)
_OR = r"\\text\s*\{\s*,?\s*or\s*\}|\\lor(?![A-Za-z])|\\vee(?![A-Za-z])|(?<![A-Za-z])or(?![A-Za-z])"


def _listed(text: str, depth: int) -> Shape | None:
    """Several answers separated by commas, semicolons, "and", "or"."""
    text = re.sub(rf",?\s*(?:{_AND})\s*", " \x02 ", text)
    text = re.sub(rf",?\s*(?:{_OR})\s*", " \x03 ", text)
    pieces = _join_thousands(split_top(text, ("\x02", "\x03", ",", ";")))
    pieces = [(piece.strip(), separator) for piece, separator in pieces if piece.strip()]
    if len(pieces) < 2:
        joined = pieces[0][0] if pieces else ""
        if not joined or joined == text.strip():
            return None
        if re.fullmatch(r"\d{1,3}(,\d{3})+", text):
            return Group(
                "list", tuple(read_expression(part) for part in text.split(",")), read_expression(joined)
            )
        return _read(joined, depth)
    items = tuple(_read(piece, depth) for piece, _ in pieces)
    separators = {separator for _, separator in pieces[:-1]}
    regions = tuple(item for item in items if isinstance(item, Region))
    if len(regions) == len(items) and not _are_intervals(pieces):
        return combined(regions, intersect="\x02" in separators, either=bool(separators & {",", ";"}))
    flat = [leaf for item in items for leaf in _flatten(item)]
    return Group("list", tuple(flat))


def _flatten(item: Shape) -> tuple[Shape, ...]:
    """1 \\pm 2 inside a list is two of its items."""
    return item.items if isinstance(item, Group) and item.kind == "list" else (item,)


def _are_intervals(pieces: list[tuple[str, str]]) -> bool:
    return not any(relation in piece for piece, _ in pieces for relation in (*_RELATIONS, r"\ne"))


def _join_thousands(pieces: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Puts 1,234,567 together again; "1, 234" and "12,345,67" stay lists."""
    joined: list[tuple[str, str]] = []
    grouping = False
    for piece, separator in pieces:
        before, comma = joined[-1] if joined else ("", "")
        figures = r"\d{3,}" if grouping else r"\d{1,3}"
        start = re.search(rf"(?:^|[\s=+\-{CURRENCY}]){figures}$", before)
        grouping = bool(comma == "," and start and re.match(r"\d{3}(?!\d)", piece))
        if grouping:
            joined[-1] = (before + piece, separator)
        else:
            joined.append((piece, separator))
    return joined


_BRACKETS: tuple[tuple[str, str, Literal["set", "tuple", "bracket"]], ...] = (
    (r"\{", r"\}", "set"),
    ("(", ")", "tuple"),
    ("[", "]", "bracket"),
    (r"\langle", r"\rangle", "tuple"),
    ("<", ">", "tuple"),
)


def _bracketed(text: str, depth: int) -> Shape | None:
    for opening, ending, kind in _BRACKETS:
        if not text.startswith(opening):
            continue
        if not text.endswith(ending) or opening in "([" and closing(text, 0) != len(text) - 1:
            return None
        if kind == "set" and closing(text, 0) != len(text) - len(ending):
            return None
        inner = text[len(opening) : -len(ending)]
        pieces = [piece.strip() for piece, _ in split_top(inner, (",", ";"))]
        if kind == "set":
            return _set(inner, pieces, depth)
        if len(pieces) < 2:
            return None
        return Group(kind, tuple(_read(piece, depth) for piece in pieces))
    return None


def _set(inner: str, pieces: list[str], depth: int) -> Shape:
    built = re.match(rf"\s*({_VARIABLE.pattern})\s*(?:\\in\s*\\R\s*)?(?:\||:)\s*(.*)", inner, re.DOTALL)
    if built:
        return _read(tidy(built[2]), depth)
    if not inner.strip():
        return Group("set", ())
    items = [_read(piece, depth) for piece in pieces if piece]
    return Group("set", tuple(leaf for item in items for leaf in _flatten(item)))


def _plus_minus(text: str, depth: int) -> Shape | None:
    if not re.search(r"\\(?:pm|mp)(?![A-Za-z])", text):
        return None
    plus = re.sub(r"\\pm(?![A-Za-z])", "+", re.sub(r"\\mp(?![A-Za-z])", "-", text))
    minus = re.sub(r"\\pm(?![A-Za-z])", "-", re.sub(r"\\mp(?![A-Za-z])", "+", text))
    return Group("list", (_read(plus, depth), _read(minus, depth)))


def _ratio(text: str, depth: int) -> Shape | None:
    pieces = [piece.strip() for piece, _ in split_top(text.replace(r"\colon", ":"), (":",))]
    if len(pieces) < 2 or not all(pieces):
        return None
    return Ratio(tuple(read_expression(piece) for piece in pieces))


# ---- relations and regions ------------------------------------------------------------------------


def _relation(text: str, depth: int) -> Shape | None:
    named = re.fullmatch(rf"({_VARIABLE.pattern})\s*\\in(?![A-Za-z])\s*(.*)", text, re.DOTALL)
    if named:
        inner = _read(named[2], depth)
        region = None if isinstance(inner, Group) and inner.kind == "set" else as_region(inner)
        return replace(region, name=named[1].strip()) if region else Named(named[1].strip(), inner)
    if re.search(r"<|>|\\[lg]e(?![A-Za-z])", text) and not text.startswith("<"):
        return _inequality(text)
    unequal = re.fullmatch(rf"({_VARIABLE.pattern})\s*\\ne(?![A-Za-z])\s*(.*)", text, re.DOTALL)
    if unequal:
        hole = read_expression(unequal[2])
        return Region(without((REALS,), hole), unequal[1].strip())
    rounded = [piece.strip() for piece, _ in split_top(text, (r"\approx",))]
    if len(rounded) > 1:
        if not rounded[0]:
            return _read(rounded[-1], depth)
        left, right = _read(rounded[0], depth), _read(rounded[-1], depth)
        return Named(rounded[0], right) if _NAME.fullmatch(rounded[0]) else Either((left, right))
    parts = [piece.strip() for piece, _ in split_top(text, ("=", r"\equiv", r"\coloneqq"))]
    if len(parts) > 1:
        return _equality([part for part in parts if part], text, depth)
    return None


def _equality(parts: list[str], text: str, depth: int) -> Shape | None:
    if not parts:
        return None
    if len(parts) == 1:
        return _read(parts[0], depth)
    first, last = parts[0], parts[-1]
    if _NAME.fullmatch(first):
        return Named(re.sub(r"\s+", "", first), _read(last, depth))
    if _VARIABLE.fullmatch(last) and len(parts) == 2:
        return Named(re.sub(r"\s+", "", last), _read(first, depth))
    left, right = _read(first, depth), _read(last, depth)
    if isinstance(left, Expr) and left.value is not None and not left.value.names:
        return right  # 2 + 3 = 5
    return Equation(left, right, text)


def _inequality(text: str) -> Shape | None:
    """x > a, a < x, a < x \\le b as a region; anything longer or in two variables is left to math-verify."""
    pieces = split_top(text, _RELATIONS)
    sides = [strip_braces(piece.strip()) for piece, _ in pieces]
    relations = [relation for _, relation in pieces[:-1]]
    if not relations:
        return None
    if len(sides) == 2 and sides[0].startswith("|") and sides[0].endswith("|"):
        return _absolute(sides[0][1:-1].strip(), relations[0], sides[1])
    variables = [bool(_VARIABLE.fullmatch(side)) for side in sides]
    if len(sides) == 2 and variables[1] and (not variables[0] or sides[1] < sides[0]):
        sides.reverse()
        relations = [{"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}[relations[0]]]
    if len(sides) == 2 and _VARIABLE.fullmatch(sides[0]):
        bound, strict = read_expression(sides[1]), relations[0] in "<>"
        below = relations[0] in ("<", r"\le")
        piece = Piece(MINUS_INFINITY, bound, True, strict) if below else Piece(bound, INFINITY, strict, True)
        return Region((piece,), sides[0])
    if len(sides) == 3 and _VARIABLE.fullmatch(sides[1]):
        rising = [relation in ("<", r"\le") for relation in relations]
        if rising[0] == rising[1]:
            low, high = (0, 2) if rising[0] else (2, 0)
            opens = [relation in "<>" for relation in relations]
            low_open, high_open = (opens[0], opens[1]) if rising[0] else (opens[1], opens[0])
            return Region(
                (Piece(read_expression(sides[low]), read_expression(sides[high]), low_open, high_open),),
                sides[1],
            )
    return Expr(text, None)


def _absolute(name: str, relation: str, limit: str) -> Shape | None:
    """|x| < a lies between -a and a, |x| > a outside."""
    high, low = read_expression(limit), read_expression(f"-({limit})")
    strict = relation in "<>"
    if not _VARIABLE.fullmatch(name) or "|" in limit:
        return None
    if relation in ("<", r"\le"):
        return Region((Piece(low, high, strict, strict),), name)
    return Region((Piece(MINUS_INFINITY, low, True, strict), Piece(high, INFINITY, strict, True)), name)


def _region(text: str, depth: int) -> Shape | None:
    if text in (r"\R", r"(-\infty,\infty)"):
        return Region((REALS,))
    if text == r"\emptyset":
        return Group("set", ())
    minus = [piece.strip() for piece, _ in split_top(text, (r"\setminus", r"\backslash"))]
    if len(minus) == 2:
        whole, hole = as_region(_read(minus[0], depth)), _read(minus[1], depth)
        if whole and isinstance(hole, Group) and hole.kind == "set":
            pieces = whole.pieces
            for point in hole.items:
                if isinstance(point, Expr):
                    pieces = without(pieces, point)
            return Region(pieces)
        return None
    union = [piece.strip() for piece, _ in split_top(text, (r"\cup", r"\bigcup"))]
    if len(union) > 1:
        regions = [as_region(_read(piece, depth)) for piece in union]
        if all(region is not None for region in regions):
            return Region(tuple(piece for region in regions if region for piece in region.pieces))
        return None
    text = re.sub(r"^[a-z]\s*(?=\(.*\]$|\[.*\)$)", "", text)  # t(0,4]
    match = re.match(r"[(\[]|\]", text)
    if match and text[-1] in ")]([" and (text[0], text[-1]) not in (("(", ")"), ("[", "]")):
        inner = [piece.strip() for piece, _ in split_top(text[1:-1], (",", ";"))]
        if len(inner) == 2:
            low, high = read_expression(inner[0]), read_expression(inner[1])
            return Region((Piece(low, high, text[0] != "[", text[-1] != "]"),))
    return None
