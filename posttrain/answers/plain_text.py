"""Numbers and expressions in prose that has no formulas: "So y = 3x - 2.", "the ratio is 2 to 1", "x = 2 or x = -3".

The last number of a text is its answer only together with what it belongs to: the 2 of 5sqrt(2), of x^2 or of (3, 2) is
not said to be the answer. An expression grows to both sides as far as operators, brackets and letters go.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.answers.one_character import CURRENCY_SIGNS
from posttrain.answers.tree import FUNCTION_NAMES, GREEK

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_TOKEN = re.compile(
    rf"(?P<number>(?:(?:\\?\$|[{CURRENCY_SIGNS}])\s?-?)?(?:{_NUMBER})(?:[eE][-+]?\d+(?![\w.]))?)"
    r"|(?P<relation><=|>=|!=|[=<>]|\\(?:le|ge|ne|approx)(?![A-Za-z]))"
    r"|(?P<operator>\*\*|[-+*/^_]|\\(?:times|cdot|div|pm)(?![A-Za-z]))"
    r"|(?P<opening>[(\[{])|(?P<closing>[)\]}])"
    r"|(?P<after>!|\\?%|\^\\circ|')"
    r"|(?P<word>\\[A-Za-z]+|√|[^\W\d_]+)"
    r"|(?P<space>\s+)|(?P<other>.)",
    re.DOTALL,
)
_FUNCTIONS = FUNCTION_NAMES | {"sqrt", "log", "pi", "infinity"}
_MULTIPLIED = frozenset(
    "ixyznkabtr"
)  # letters that multiply the number before them; 5m and 5g are quantities
_MULTIPLE = re.compile(
    r"\s+(?:hundred|thousand|million|billion|trillion)\b(?! and\b)|\s?[ap]\.?m\b", re.IGNORECASE
)
_BOUNDED = re.compile(r"(?:all real numbers )?(?:greater|less) than (?:or equal to )?$")
_PERCENT = re.compile(r"\s?(?:percent|pct)\b")
_GAP = re.compile(r"(?:\s*,\s*(?:and|or)\s+|\s*,\s+|\s+(?:and|or)\s+|\s*&\s*)$")
_INTRODUCES_LIST = re.compile(r"(?:[=:]|\bare|\bis|\bin)\s*$")
_SIGNED = re.compile(r"(?:^|[=(\[{,:<>]|\bis|\bby|\bare|\bget|\bgives?|\x00)\s*$")


@dataclass(frozen=True)
class Token:
    kind: str
    text: str
    begin: int
    end: int


def last_plain(text: str) -> tuple[int, str] | None:
    """Where the last number or expression begins, and how it reads; of a list the whole."""
    text = re.sub(r"(?<=\d) ?[xX] ?(?=10 ?\^)", "*", text)
    tokens = [Token(str(m.lastgroup), m.group(), m.start(), m.end()) for m in _TOKEN.finditer(text)]
    at = _last_number(tokens)
    if at is None:
        return None
    first, last = _grown(tokens, at)
    begin, answer = _read(text, tokens, first, last)
    if re.search(r"\bnot\s*$", text[:begin]):
        return begin, f"not {answer}"
    bounded = _BOUNDED.search(text[:begin])
    if bounded:  # no number at all
        return bounded.start(), bounded.group() + answer
    if re.search(r"\d\s+to\s+$", text[:begin]) and re.search(r"\bratio\b", text):
        before = re.search(r"[\d.]+\s+to\s+$", text[:begin])
        return (before.start(), before.group() + answer) if before else (begin, answer)
    items, joined = [answer], False
    while gap := _GAP.search(text[:begin]):
        end = _ending_at(tokens, gap.start())
        if end is None:
            break
        joined = joined or bool(gap.group().strip(" ,"))
        first, last = _grown(tokens, end)
        start, item = _read(text, tokens, first, last)
        begin, items = start, [item, *items]
    if len(items) == 1 or joined or _INTRODUCES_LIST.search(text[:begin]) or "=" in items[0]:
        return begin, "; ".join(items)
    return begin, answer


def _last_number(tokens: Sequence[Token]) -> int | None:
    """The last number that is no exponent of a unit and in no aside: "36 cm^3", "7 (mod 11)"."""
    numbers = [
        at for at, token in enumerate(tokens) if token.kind == "number" and not _is_unit_power(tokens, at)
    ]
    for at in reversed(numbers):
        if not _is_aside(tokens, at):
            return at
    return numbers[-1] if numbers else None


def _is_unit_power(tokens: Sequence[Token], at: int) -> bool:
    before = at - 1
    if before >= 0 and tokens[before].text == "{":
        before -= 1
    return (
        before > 0
        and tokens[before].text == "^"
        and tokens[before - 1].kind == "word"
        and len(tokens[before - 1].text) > 1
        and not _is_operand(tokens[before - 1])
    )


def _is_aside(tokens: Sequence[Token], at: int) -> bool:
    """Whether a number stands within brackets that hold words."""
    depth = 0
    for back in range(at - 1, max(-1, at - 40), -1):
        depth += (tokens[back].kind == "closing") - (tokens[back].kind == "opening")
        if depth < 0:
            end = _partner(tokens, back)
            inside = tokens[back + 1 : end if end is not None else len(tokens)]
            return any(token.kind == "word" and not _is_operand(token) for token in inside)
    return False


def _is_operand(token: Token) -> bool:
    if token.kind != "word":
        return token.kind == "number"
    name = token.text.removeprefix("\\")
    return len(name) == 1 or name in _FUNCTIONS or name in GREEK or name in ("frac", "infty")


def _partner(tokens: Sequence[Token], at: int) -> int | None:
    """Where the bracket at `at` is closed, or opened."""
    step = 1 if tokens[at].kind == "opening" else -1
    depth = 0
    for place in range(at, len(tokens) if step > 0 else -1, step):
        depth += (tokens[place].kind == "opening") - (tokens[place].kind == "closing")
        if depth == 0:
            return place
    return None


def _formula_bracket(tokens: Sequence[Token], at: int) -> int | None:
    """The partner of a bracket that holds no words, or None."""
    other = _partner(tokens, at)
    if other is None:
        return None
    inside = tokens[min(at, other) + 1 : max(at, other)]
    return None if any(t.kind == "word" and not _is_operand(t) or "\n" in t.text for t in inside) else other


def _grown(tokens: Sequence[Token], at: int) -> tuple[int, int]:
    """First and last token of the expression around a token."""
    first = last = at
    for back in range(at, max(-1, at - 60), -1):  # the outermost bracket around it
        if tokens[back].kind == "opening":
            end = _formula_bracket(tokens, back)
            if end is not None and end >= last:
                first, last = back, end
    while (begin := _grown_left(tokens, first)) is not None:
        first = begin
    while (end := _grown_right(tokens, last)) is not None:
        last = end
    return first, last


def _grown_left(tokens: Sequence[Token], first: int) -> int | None:
    spaced = first > 0 and tokens[first - 1].kind == "space"
    before = first - 1 - spaced
    if before < 0 or spaced and "\n" in tokens[first - 1].text:
        return None
    token = tokens[before]
    leads = tokens[first].kind in ("operator", "relation") or tokens[first].text == ":"
    if token.kind in ("operator", "relation"):
        return None if leads and tokens[first].text not in "+-" else before
    if token.text == ":" and not spaced and before and tokens[before - 1].kind == "number":
        return before
    if token.kind == "after" and leads:
        return before
    if spaced and not leads and not _is_mixed(tokens, before, first):
        return None
    if token.kind == "closing":
        return _formula_bracket(tokens, before)
    return before if _is_operand(token) or token.kind == "after" else None


def _is_mixed(tokens: Sequence[Token], before: int, first: int) -> bool:
    """4 4/9: a whole number and a fraction behind it."""
    fraction = "".join(token.text for token in tokens[first : first + 3])
    return tokens[before].text.isdigit() and bool(re.fullmatch(r"\d+/\d+", fraction))


def _grown_right(tokens: Sequence[Token], last: int) -> int | None:
    after = last + 1
    if after >= len(tokens):
        return None
    token = tokens[after]
    if token.kind == "after" and not (token.text == "!" and tokens[last].kind == "number"):
        return after
    if token.text == "!" and after + 2 < len(tokens) and tokens[after + 2].kind in ("relation", "operator"):
        return after  # 5! = 120; at the end of a sentence it is no factorial
    if token.kind == "opening":
        return _formula_bracket(tokens, after)
    if token.kind == "word" and _is_operand(token):
        name = token.text.removeprefix("\\")
        return after if len(name) > 1 or name in _MULTIPLIED or not token.text.isalpha() else None
    spaced = token.kind == "space"
    operator = after + spaced
    if operator >= len(tokens) or "\n" in token.text:
        return None
    glued = tokens[operator].text == ":" and not spaced
    if tokens[operator].kind not in ("operator", "relation") and not glued:
        return None
    behind = operator + 1
    if behind < len(tokens) and tokens[behind].kind == "space" and not glued:
        behind += 1
    if behind < len(tokens) and tokens[behind].text in ("-", "+"):
        behind += 1
    if behind >= len(tokens):
        return None
    if tokens[behind].kind == "opening":
        return _formula_bracket(tokens, behind)
    return behind if _is_operand(tokens[behind]) else None


def _ending_at(tokens: Sequence[Token], end: int) -> int | None:
    """The token that ends at a place, where an expression may end."""
    for at, token in enumerate(tokens):
        if token.end == end:
            return at if token.kind in ("number", "closing", "after") or _is_operand(token) else None
    return None


def _read(text: str, tokens: Sequence[Token], first: int, last: int) -> tuple[int, str]:
    """Where an expression begins and how it reads: of a computation its result, without a dash that is no sign."""
    while first < last and (
        tokens[first].kind in ("relation", "space")
        or tokens[first].kind == "operator"
        and not (tokens[first].text in "+-" and _is_sign(text, tokens, first))
    ):
        first += 1
    run = text[tokens[first].begin : tokens[last].end]
    percent, multiple = (pattern.match(text[tokens[last].end :]) for pattern in (_PERCENT, _MULTIPLE))
    result = re.fullmatch(r"[^A-Za-z\\]*=\s*([^=]*)", run)  # 9 * 2 = $18
    if result:
        run = result[1]
    run = re.sub(r"^\d+-(?=\d+$)", "", run)  # pages 10-15
    run = re.sub(r"^([-+])\s+", r"\1", run).removeprefix("+")
    return tokens[first].begin, run + (r"\%" if percent else multiple.group() if multiple else "")


def _is_sign(text: str, tokens: Sequence[Token], at: int) -> bool:
    """A dash is a sign where something begins: x = -15, is - 15; "cost - 15" and 10-15 have none."""
    before = text[: tokens[at].begin]
    spaced = at + 1 < len(tokens) and tokens[at + 1].kind == "space"
    return bool(_SIGNED.search(before)) if spaced else not re.search(r"[\w)\]}%!\x00]$", before)
