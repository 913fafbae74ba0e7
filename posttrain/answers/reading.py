"""Reading the shape of an answer, one reader after another: words, lists, relations, brackets, and so on."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from typing import Literal

from posttrain.answers.expression import read_expression
from posttrain.answers.notation import CURRENCY, closing, split_top, strip_braces, tidy
from posttrain.answers.numerals import word_number
from posttrain.answers.relations import RELATIONS, VARIABLE, region, relation
from posttrain.answers.shape import (
    Either,
    Expr,
    Matrix,
    Named,
    Ratio,
    Region,
    Several,
    Shape,
    Words,
    combined,
)
from posttrain.answers.units import read_unit
from posttrain.answers.wording import relation_in_signs

_SYNONYMS = {
    "no solution": r"\emptyset", "no solutions": r"\emptyset", "none": r"\emptyset", "empty set": r"\emptyset",
    "no real solution": r"\emptyset", "no real solutions": r"\emptyset", "does not exist": "dne",
    "all real numbers": r"\R", "all reals": r"\R", "infinite": r"\infty", "infinity": r"\infty",
    "infinitely many": r"\infty", "all positive real numbers": r"(0,\infty)", "all positive reals": r"(0,\infty)",
    "all negative real numbers": r"(-\infty,0)", "all nonnegative real numbers": r"[0,\infty)",
    "all non-negative real numbers": r"[0,\infty)", "all nonzero real numbers": r"(-\infty,0)\cup(0,\infty)",
    "all integers": r"\Z", "set of all integers": r"\Z", "set of integers": r"\Z",
}  # fmt: skip
_BOUND = re.compile(
    r"\b(?:or (?:more|less|fewer|greater|higher|lower)|at (?:least|most)|not|wrong|incorrect)\b",
    re.IGNORECASE,
)
_SHORT = "yes no odd even one two six ten all both none true dne"
_SHORT_WORDS = frozenset(_SHORT.split())
_PREAMBLE = re.compile(
    r"^(?:\\text\s*\{)?\s*(?:so,?\s+|thus,?\s+|therefore,?\s+)?(?:the\s+)?(?:final\s+)?"
    r"(?:answer|solution|result)s?(?:\s+(?:is|are))?\s*:?\s*(?:\}|(?=\s))\s*(?:=\s*)?"
    r"|^\\text\s*\{\s*[A-Z][A-Za-z ]+:\s*\}\s*|^[A-Z][a-z]+(?: [a-z]+)*:\s+"
    r"|^\\text\s*\{\s*(?:the )?point\s*\}\s*(?=\()|^\\text\s*\{\s*(?:for )?all\s*\}\s*(?=[^<>]+(?:[<>]|\\[lg]e))"
    r"|^\\text\s*\{[A-Za-z ]+\b(?:is|are|equals)\s*:?\s*\}\s*",
    re.IGNORECASE,
)
_CLOCK = re.compile(r"\s*(\d{1,2})(?::(\d\d))?\s*([ap])\.?\s?m\b[.\s]*", re.IGNORECASE)
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
        _worded,
        _words,
        _choice,
        _trimmed,
        _matrix,
        _built_set,
        _unit_vectors,
        _compound,
        _listed,
        _related,
        _placed,
        _bracketed,
        _point,
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


def _worded(text: str, depth: int) -> Shape | None:
    related = relation_in_signs(text)
    return None if related is None else _read(tidy(related), depth)


def _words(text: str, depth: int) -> Shape | None:
    if text.strip() == r"\ldots":
        return Words(r"\ldots")
    if _BOUND.search(_connectors(_CONDITION.sub("", text))) and _plain(text) not in _SYNONYMS:
        return Words(_plain(text))
    whole = re.fullmatch(r"\\text\s*\{([^{}]*)\}", text)
    bare = re.fullmatch(r"[A-Za-z](?:[A-Za-z' ]|(?<=[A-Za-z])-(?=[A-Za-z]))*[A-Za-z]", text)
    clock = _CLOCK.fullmatch(_connectors(text))
    if clock and int(clock[1]) <= 12:
        hour = int(clock[1]) % 12 + (12 if clock[3].lower() == "p" else 0)
        return Words(f"{hour:02d}:{clock[2] or '00'}")
    if whole:
        inner = whole[1].strip()
        rest = _PREAMBLE.sub("", inner)
        if rest and rest != inner:
            return _read(rest, depth)
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
    number = word_number(plain)
    if number is not None:
        return Words(plain, number)
    if plain in _SYNONYMS:
        return Words("dne") if plain == "does not exist" else _read(_SYNONYMS[plain], depth)
    connected = re.split(r"\s*(?:,| and | or )\s*", _connectors(text).strip())
    labels = [re.fullmatch(r"\(?([A-Za-z]{1,2}|[IVX]+)\)?", part) for part in connected]
    if len(connected) > 1 and all(labels):  # "A and C", "I and III": a list of choices
        return Several("list", tuple(Words(label[1].lower()) for label in labels if label))
    if len(connected) > 1 and all(re.fullmatch(r"[A-Za-z][A-Za-z' -]+", part) for part in connected):
        return Several("list", tuple(Words(_plain(part)) for part in connected))
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
    if match is None:
        match = re.fullmatch(r"([A-J])\s*[).:](?:\s+(.*))?", text, re.DOTALL)
    if match is None or (match[2] or "")[:1] in tuple("=+-*/^_<>,!"):
        return None
    letter = Words(match[1].lower())
    if not (match[2] or "").strip():
        return letter
    content = _read(match[2].strip(), depth)
    chosen = [label for item in _flatten(content) if (label := _label(item))]
    if set(chosen) - {letter.text}:  # (A) (B): two choices
        return Several("list", _flatten(content) if letter.text in chosen else (letter, *_flatten(content)))
    return letter if chosen else Either((letter, content))


def _label(shape: Shape) -> str | None:
    """The letter of a choice, with or without its content. I is a number, as in "(B) I and II"."""
    if isinstance(shape, Either):
        return _label(shape.options[0])
    letter = shape.text if isinstance(shape, Words | Expr) else ""
    single = re.fullmatch(r"[a-hj]" if isinstance(shape, Words) else "[A-HJ]", letter)
    return letter.lower() if single else None


def _trimmed(text: str, depth: int) -> Shape | None:
    """Without a preamble ("the answer is", "Total:") and without conditions ("where k is an integer")."""
    rest = _CONDITION.sub("", _PREAMBLE.sub("", text)).strip()
    excluded = re.fullmatch(r"([^<>=,;]*[A-Za-z][^<>=,;]*)[,;]\s*[a-z]\s*\\ne(?![A-Za-z]).*", rest)
    if excluded and not re.search(r"\\(?:ne|in)(?![A-Za-z])", excluded[1]):
        rest = excluded[1]
    if rest != text and rest:
        return _read(tidy(rest), depth)
    return None


# ---- lists, brackets, matrices --------------------------------------------------------------------


def _matrix(text: str, depth: int) -> Shape | None:
    cases = re.fullmatch(r"\\?\{?\s*\\begin\s*\{cases\}([^&]*)\\end\s*\{cases\}", text)
    if cases:
        return _read(tidy(cases[1].replace("\\\\", ", ")), depth)
    match = re.fullmatch(
        r"([^=<>&,]*?)[(\[]?\s*\\begin\s*\{([pbB]?matrix|smallmatrix|array)\}(?:\s*\{[clr|\s]*\})?(.*)\\end\s*\{\2\}\s*[)\]]?",
        text, re.DOTALL,
    )  # fmt: skip
    if match is None or r"\begin" in match[3]:
        return None
    factor = match[1].strip().removesuffix(r"\cdot")
    factor = f"({factor}1)" if factor in ("-", "+", "") else f"({factor})"
    rows = [re.sub(r"^\s*\[[\d.]+\s*\w*\]", "", row) for row in match[3].split("\\\\")]
    cells = [
        tuple(_read(tidy(cell if factor == "(1)" else f"{factor}({cell})"), depth) for cell in row.split("&"))
        for row in rows
        if row.strip(" \\hline")
    ]
    return Matrix(tuple(cells)) if cells else None


def _built_set(text: str, depth: int) -> Shape | None:
    """x | x > 2, where the braces of the set were written without a backslash."""
    built = re.match(rf"({VARIABLE.pattern})\s*(?:\\in\s*\\R\s*)?(?:\||:)\s*(?=\1|-?\d)(.*)", text, re.DOTALL)
    if built is None or not re.search(r"[<>]|\\(?:le|ge|ne)(?![A-Za-z])", built[2]):
        return None
    return _read(tidy(built[2]), depth)


def _unit_vectors(text: str, depth: int) -> Shape | None:
    r"""3\mathbf{i} - \mathbf{j} is (3, -1): each entry is the expression with one unit vector 1 and the others 0."""
    if r"\unit" not in text:
        return None
    axes = "ijk" if r"\unitk" in text else "ij"
    entries = []
    for axis in axes:
        entry = re.sub(rf"\\unit{axis}(?![A-Za-z])", "(1)", text)
        entries.append(read_expression(re.sub(r"\\unit[ijk](?![A-Za-z])", "(0)", entry)))
    return Several("tuple", tuple(entries))


def _compound(text: str, depth: int) -> Shape | None:
    """4 hours 30 minutes, 4 dollars and 50 cents: one quantity in two units of one kind."""
    match = re.fullmatch(
        r"\s*(\d[\d.]*)\s*([a-z]+)\s*(?:,|and)?\s*(\d[\d.]*)\s*([a-z]+)\s*", _connectors(text), re.IGNORECASE
    )
    if match is None:
        return None
    large, small = read_unit(match[2]), read_unit(match[4])
    if (
        not large.factor
        or not small.factor
        or large.dimension != small.dimension
        or large.factor <= small.factor
    ):
        return None
    share = small.factor / large.factor
    total = rf"{match[1]}+{match[3]}\cdot\frac{{{share.numerator}}}{{{share.denominator}}}"
    return replace(read_expression(total), unit=large)


def _point(text: str, depth: int) -> Shape | None:
    """P(3, 4): a tuple with a name. C(5, 2) may also be a binomial coefficient."""
    match = re.fullmatch(r"([A-Z]'?)\s*(\(.*\))", text)
    if match is None or closing(text, match.start(2)) != len(text) - 1:
        return None
    inner = _bracketed(match[2], depth)
    if not isinstance(inner, Several):
        return None
    if match[1] == "C" and len(inner.items) == 2:
        n, k = (piece for piece, _ in split_top(match[2][1:-1], (",", ";")))
        return Either((Named(match[1], inner), read_expression(rf"\binom{{{n}}}{{{k}}}")))
    return Named(match[1], inner)


_AND = (
    r"\\text\s*\{\s*,?\s*(?:and|&)\s*\}|(?<= )&(?= )|\\land(?![A-Za-z])|\\wedge(?![A-Za-z])"
    r"|(?<![A-Za-z])and(?![A-Za-z])"
)
_OR = (
    r"\\text\s*\{\s*,?\s*or\s*\}|\\lor(?![A-Za-z])|\\vee(?![A-Za-z])|(?<![A-Za-z])or(?![A-Za-z])(?! equal\b)"
)


def _listed(text: str, depth: int) -> Shape | None:
    """Several answers separated by commas, semicolons, "and", "or"."""
    solutions = _solutions(text, depth)
    if solutions is not None:
        return solutions
    text = re.sub(rf",?\s*(?:{_AND})\s*", " \x02 ", text)
    text = re.sub(rf",?\s*(?:{_OR})\s*", " \x03 ", text)
    pieces = _join_thousands(split_top(text, ("\x02", "\x03", ",", ";")))
    pieces = [(piece.strip(), separator) for piece, separator in pieces if piece.strip()]
    if len(pieces) < 2:
        joined = pieces[0][0] if pieces else ""
        if not joined or joined == text.strip():
            return None
        if re.fullmatch(r"\d{1,3}(,\d{3})+", text):
            return Several(
                "list", tuple(read_expression(part) for part in text.split(",")), read_expression(joined)
            )
        return _read(joined, depth)
    items = tuple(_read(piece, depth) for piece, _ in pieces)
    separators = {separator for _, separator in pieces[:-1]}
    regions = tuple(item for item in items if isinstance(item, Region))
    one_variable = len({region.name for region in regions}) == 1
    if len(regions) == len(items) and one_variable and not _are_intervals(pieces):
        return combined(regions, intersect="\x02" in separators, either=bool(separators & {",", ";"}))
    flat = [leaf for item in items for leaf in _flatten(item)]
    return Several("list", tuple(flat))


def _solutions(text: str, depth: int) -> Shape | None:
    """p = 5, q = 2; p = 7, q = 2: several solutions of one system, as the list of (5, 2) and (7, 2)."""
    if text.count("=") < 4:
        return None
    pieces = [piece.strip(" ,") for piece, _ in split_top(re.sub(rf"{_AND}|{_OR}", ";", text), (";",))]
    pieces = [piece for piece in pieces if piece]
    if len(pieces) < 2 or not all(piece.count("=") > 1 for piece in pieces):
        return None
    found = [_read(piece, depth) for piece in pieces]
    names: list[str] = []
    tuples = []
    for one in found:
        if (
            not isinstance(one, Several)
            or one.kind != "list"
            or not all(isinstance(i, Named) for i in one.items)
        ):
            return None
        entries = {item.name: item.inner for item in one.items if isinstance(item, Named)}
        names = names or list(entries)
        if len(entries) != len(one.items) or set(entries) != set(names):
            return None
        tuples.append(Named(f"({','.join(names)})", Several("tuple", tuple(entries[name] for name in names))))
    return Several("list", tuple(tuples))


def _flatten(item: Shape) -> tuple[Shape, ...]:
    """1 \\pm 2 inside a list is two of its items, and so is x = 1 \\pm 2."""
    if isinstance(item, Named) and isinstance(item.inner, Several) and item.inner.kind == "list":
        return tuple(Named(item.name, inner) for inner in item.inner.items)
    return item.items if isinstance(item, Several) and item.kind == "list" else (item,)


def _are_intervals(pieces: list[tuple[str, str]]) -> bool:
    return not any(relation in piece for piece, _ in pieces for relation in (*RELATIONS, r"\ne"))


def _join_thousands(pieces: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Puts 1,234,567 together again; "1, 234" and "12,345,67" stay lists."""
    joined: list[tuple[str, str]] = []
    grouping = False
    for piece, separator in pieces:
        before, comma = joined[-1] if joined else ("", "")
        figures = r"\d{3,}" if grouping else r"\d{1,3}"
        start = re.search(rf"(?:^|[\s=+\-{CURRENCY}]){figures}$", before)
        spaced = re.match(r" 0\d\d(?!\d)", piece)  # 10, 000: no number begins with 0
        grouping = bool(comma == "," and start and (spaced or re.match(r"\d{3}(?!\d)", piece)))
        if grouping:
            joined[-1] = (before + piece.lstrip(), separator)
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
        items = tuple(_read(piece, depth) for piece in pieces)
        points = kind == "bracket" and all(isinstance(i, Several) and i.kind == "tuple" for i in items)
        return Several("list" if points else kind, items)  # [(1, 2), (3, 4)]: several points
    return None


def _set(inner: str, pieces: list[str], depth: int) -> Shape:
    built = re.match(
        rf"\s*({VARIABLE.pattern}|\([^()]*\))\s*(?:\\in\s*\\R\s*)?(?:\||:)\s*(.*)", inner, re.DOTALL
    )
    if built:
        return _read(tidy(built[2]), depth)
    if not inner.strip():
        return Several("set", ())
    items = [_read(piece, depth) for piece in pieces if piece]
    return Several("set", tuple(leaf for item in items for leaf in _flatten(item)))


def _plus_minus(text: str, depth: int) -> Shape | None:
    if not re.search(r"\\(?:pm|mp)(?![A-Za-z])", text):
        return None
    plus = re.sub(r"\\pm(?![A-Za-z])", "+", re.sub(r"\\mp(?![A-Za-z])", "-", text))
    minus = re.sub(r"\\pm(?![A-Za-z])", "-", re.sub(r"\\mp(?![A-Za-z])", "+", text))
    return Several("list", (_read(plus, depth), _read(minus, depth)))


def _ratio(text: str, depth: int) -> Shape | None:
    text = re.sub(r"(?<=[\d}])\s*(?:\\text\s*\{\s*to\s*\}|\bto\b)\s*(?=[\d\\])", ":", text)
    pieces = [piece.strip() for piece, _ in split_top(text.replace(r"\colon", ":"), (":",))]
    if len(pieces) < 2 or not all(pieces):
        return None
    if r"\ldots" in text:  # 1:2:3:...: no number tells how it goes on
        return Words(re.sub(r"\s+", "", text))
    return Ratio(tuple(read_expression(piece) for piece in pieces))


# ---- relations and regions ------------------------------------------------------------------------


def _related(text: str, depth: int) -> Shape | None:
    return relation(text, depth, _read)


def _placed(text: str, depth: int) -> Shape | None:
    return region(text, depth, _read)
