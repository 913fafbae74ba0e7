"""The final answer of a text that marks none with a box: what it states ("the answer is ..."), else its last number.

Nothing is taken from a text that breaks off: inside of a formula, behind an operator, in the middle of a statement.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from posttrain.answers.one_character import CURRENCY_SIGNS
from posttrain.answers.plain_text import last_plain
from posttrain.answers.spans import Span, mathematics, opens_formula
from posttrain.answers.tree import GREEK


@dataclass(frozen=True)
class Found:
    answer: str | None
    reason: str
    begin: int = -1


CUT_OFF = Found(None, "cut off")

_OTHER_LANGUAGES = (
    r"答案|答え|答(?=\s*[::])|[Оо]твет|[Рр][ée]ponse|[Rr]éponse|[Rr]espuestas?|[Rr]espostas?|[Rr]isposta|[Aa]ntwort|"
    r"الجواب|الإجابة|उत्तर|정답|[Cc]evap|[Oo]dpowiedź"
)
_ANSWER_WORD = re.compile(
    r"\b[Aa]nswers?\b|\bANSWERS?\b|\b(?:[Cc]orrect|[Rr]ight|[Bb]est) (?:option|choice|alternative)\b|"
    rf"{_OTHER_LANGUAGES}"
)
_FINAL = re.compile(r"final\W*$", re.IGNORECASE)
_MARKS = r"[\s*_`#]*"
_COLON = re.compile(rf"{_MARKS}(?:\([^()\n]*\))?{_MARKS}[:=]\}}?{_MARKS}")
_LINK = re.compile(
    r"[^.\n:!?]{0,120}?(?<![A-Za-z])(?:is|are|be|equals|was|为|是|は|es|est|ist|é|è)(?![A-Za-z])(?:\s*:)?[\s*_]*"
    r"(?:(?:therefore|thus|then|hence|simply|just|indeed|also|equal to|given by|exactly)\b[\s,:]*)*"
)
_HEADING = re.compile(r"[\s*_#:.]*\n[\s*_#]*")
_FORMULA_NEXT = re.compile(r"\s*(?=\$|\\[(\[])")
_NOT_STATED = re.compile(
    r"(?:correct|right|wrong|incorrect|clear|below|as follows|found|obtained|given|reasonable|consistent|unique|valid|"
    r"in the form|that\b|to\b|not\b|in\b|supposed|expected|likely|obvious|verified|complete|rounded|required|also\b)",
    re.IGNORECASE,
)
_POLITE = re.compile(r"\.?\s*(?:I hope (?:it|this)|Hope (?:it|this)|Let me know|Thank you)\b.*", re.DOTALL)
_ASIDE = re.compile(
    r"(?<=[\w$)\]}%*])[,;]?\s+(?:since|because|which|whereas|while|but|so(?! that\b))\b[^$\\]*$"
    r"|\s*\((?:since|because|as|i\.e\.|from|by|see|that is)\b[^()]*\)?\.?$",
    re.DOTALL,
)
_REMARK = re.compile(r"(?<=[\w$)\]}%])\s+\((?=[^()]*[A-Za-z]{3})[^()$\\]*\)$")
_ROUGHLY = re.compile(
    r"^(?:about|approximately|around|roughly|nearly|exactly|precisely|only)\s+(?=[-\d$\\])", re.IGNORECASE
)
_SENTENCE_END = re.compile(
    r"(?:(?<!\.)[.?]|(?<![\s(][A-Za-z])(?<!\\)!(?!\s*[-+*/=<>]))(?=\s|$|\*|[\"')\]](?:\s|$))|\n"
)

_ABBREVIATION = re.compile(r"\b(?:Rs|No|vs|approx|p|a|sq|ft|in|cm)$")

_ENDS_IN_OPERATOR = re.compile(r"(?:[=+*/<>^(\[{,-]|\\(?:times|cdot|approx|le|ge|frac|sqrt|div|pm|to))\s*$")
_ENDS_IN_COMMAND = re.compile(r"\\([A-Za-z]*)$")
_SYMBOLS = (
    "pi",
    "infty",
    "emptyset",
    "varnothing",
    "circ",
    "degree",
    "qed",
    "blacksquare",
    "rfloor",
    "rceil",
    "rangle",
)
_WHOLE_COMMANDS = GREEK | frozenset(_SYMBOLS)
_WORDS = re.compile(r"(?<![\\A-Za-z])[^\W\d_]{2,}")
_ANSWER_WORDS = 4  # words an answer may hold beside its formula or number: "square feet per hour"


def stated(text: str, cut_off: bool) -> Found | None:
    """What the text says its answer is; None where it states none."""
    for match in reversed(list(_ANSWER_WORD.finditer(text))):
        payload = _payload(text, match.end())
        if payload is None:
            continue
        begin, end = payload
        said = text[begin:end]
        if cut_off and end >= len(text.rstrip(" .,*")):
            return CUT_OFF
        answer = _from_statement(said)
        if answer is None and opens_formula(text[begin : begin + 2000]):
            return CUT_OFF
        if answer:
            kind = "final statement" if _FINAL.search(text[: match.start()]) else "statement"
            return Found(answer, kind, match.start())
    return None


def _payload(text: str, start: int) -> tuple[int, int] | None:
    """Where the answer of a statement begins and ends, `start` being behind the word "answer"."""
    for link in (_COLON, _LINK, _HEADING, _FORMULA_NEXT):
        match = link.match(text, start)
        if match is None:
            continue
        begin = match.end()
        while begin < len(text) and text[begin] in " \n*_#\t":
            begin += 1
        end = _sentence_end(text, begin)
        said = text[begin:end].strip()
        if said and not (link is _LINK and _NOT_STATED.match(said)):
            return begin, end
    return None


def _sentence_end(text: str, begin: int) -> int:
    """Where the sentence ends that begins at `begin`: formulas are stepped over, "3.5" is one number."""
    spans = [span for span in mathematics(text[begin : begin + 2000])]
    for match in _SENTENCE_END.finditer(text, begin):
        at = match.start() - begin
        if any(span.begin <= at < span.end - 1 for span in spans):
            continue
        if match.group() == "\n" and _continues(text[begin : match.start()], text[match.end() :]):
            continue
        abbreviated = _ABBREVIATION.search(text[begin : match.start()]) if match.group() == "." else None
        if abbreviated and text[match.end() :].strip():
            continue
        return match.start()
    return len(text)


def _continues(before: str, after: str) -> bool:
    """Whether a sentence goes on in the next line: its formula stands there by itself."""
    return bool(
        re.match(r"\s*(?:\\\[|\$\$|\\begin)", after)
        and not mathematics(before)
        and not re.search(r"\d", before)
        or opens_formula(before)
    )


def _from_statement(said: str) -> str | None:
    said = _ASIDE.sub("", _POLITE.sub("", said)).strip().strip('*_`"').strip()
    if not re.search(r"\d\.\.\.$", said):  # 0.333... goes on
        said = re.sub(r"(?:[\s.,;:*_`]|(?<=\w\w)!|(?<=\d)!)+$", "", said)
    said = _REMARK.sub("", _ROUGHLY.sub("", said))
    if re.fullmatch(r"\$[^$]*[A-Za-z][^$]*\$", said):  # "$x is at least 5$", words and all
        return said.strip("$ ")
    if not said or opens_formula(said):
        return None
    told = _behind_verb(said)
    return _joined_formulas(told) or _short(told) or last_expression(told)


def _behind_verb(said: str) -> str:
    """ "the largest $n$ is 34" -> "34": what the last verb outside of a formula leads to."""
    spans = mathematics(said)
    begin = 0
    for match in re.finditer(r"(?<![A-Za-z\\])(?:is|are|equals|be)(?![A-Za-z])\s*:?\s*", said):
        inside = any(span.begin <= match.start() < span.end for span in spans)
        relation = re.match(r"(?:less|greater|more|at (?:least|most)|not|equal)\b", said[match.end() :])
        if not inside and not relation and said[match.end() :].strip():
            begin = match.end()
    return said[begin:]


def _joined_formulas(said: str) -> str | None:
    """Formulas that the words between and behind them only join or give a unit: "$5$ apples", "$1$ and $2$"."""
    spans = mathematics(said)
    if not spans:
        return None
    pieces, position = [], 0
    for index, span in enumerate(spans):
        between = said[position : span.begin].strip()
        if index and not re.fullmatch(r",|;|,?\s*(?:and|or|&)", between):
            return None
        if not index and len(_WORDS.findall(between)) > 2:
            return None
        pieces.append(between if index and between else "")
        pieces.append(span.content)
        position = span.end
    lead, tail = said[: spans[0].begin].strip(" *:"), said[position:].strip(" *.,;:!)")
    if re.search(r"\d|[=<>]", lead):
        return said.replace("$", "")
    if len(_WORDS.findall(tail)) > _ANSWER_WORDS:
        tail = ""
    answer = " ".join(filter(None, pieces))
    return f"{answer} {_as_text(tail)}".strip()


def _as_text(tail: str) -> str:
    if re.match(r"\\?%|(?:percent(?:age)?|pct)\b", tail):
        return r"\%"
    return rf"\text{{ {tail}}}" if re.fullmatch(r"[^\W\d_][\w \-/^.]*", tail) else ""


def _short(said: str) -> str | None:
    """The whole of it, where it is short enough to be an answer by itself."""
    if "$" in said and mathematics(said):
        return None
    words = _WORDS.findall(re.sub(r"\\[A-Za-z]+(?:\s*\{[^{}]*\})?", " ", said))
    return said if len(words) <= _ANSWER_WORDS and len(said) <= 300 else None


# ---- no statement ---------------------------------------------------------------------------------


def bare(text: str) -> str | None:
    """The text itself, where it is an answer and nothing else: "$x > 5$", "(1, 2)", "12 apples", "Friday"."""
    text = _REMARK.sub("", re.sub(r"^[\s*_`#>]+|[\s*_`]+$", "", text))
    if not text or "\n\n" in text or len(text) > 300 or opens_formula(text) or breaks_off(text):
        return None
    spans = mathematics(text)
    if spans:
        return _joined_formulas(text) if not text[: spans[0].begin].strip() else None
    if "\n" in text and r"\begin" not in text:
        return None
    plain = re.sub(r"\\[A-Za-z]+\s*(?:\{[A-Za-z* ]*\})?", " ", text)
    words = _WORDS.findall(plain)
    if re.match(r"[-+.\d\\(\[\]{|$]|[A-Za-z](?![A-Za-z])|[A-Za-z](?:_|\()|\W*[=<>]", text) or re.match(
        rf"[{CURRENCY_SIGNS}√]", text
    ):
        prose = _FUNCTION_WORDS.search(plain) and not re.match(r"[A-Za-z]\s+(?:is|equals)\b", plain)
        return text if len(words) <= _ANSWER_WORDS + 2 and not prose else None
    return (
        text
        if len(words) <= 2 and not _FUNCTION_WORDS.search(plain) and not re.search(r"\d\D+\d", text)
        else None
    )


_FUNCTION_WORDS = re.compile(
    r"\b(?:is|are|was|were|so|the|we|it|she|he|they|has|have|had|then|thus|hence|because|if|this|that|which|you|"
    r"would|will|can|need|get|find|there|answer|first|next|step|therefore|since)\b|[^\x00-\x7f]{2}",
    re.IGNORECASE,
)


def last_expression(text: str) -> str | None:
    """The last formula or number of a text, whichever ends it; of a list the whole."""
    spans = [span for span in mathematics(text) if _tells(span.content)]
    outside = _without(text, mathematics(text))
    number = last_plain(outside)
    if spans and (number is None or spans[-1].begin > number[0]):
        return _listed_formulas(text, spans)
    if number is None:
        formulas = mathematics(text)
        return formulas[-1].content if formulas else None
    return number[1]


def _tells(content: str) -> bool:
    """Whether a formula may be an answer: a lone letter in a sentence names what the sentence is about."""
    return (
        bool(re.search(r"\d|[=<>]|\\(?:pi|infty|emptyset|frac|sqrt|le|ge|text)", content)) or len(content) > 3
    )


def _without(text: str, spans: list[Span]) -> str:
    for span in reversed(spans):
        text = text[: span.begin] + "\x00" * (span.end - span.begin) + text[span.end :]
    return text


def _listed_formulas(text: str, spans: list[Span]) -> str:
    together = [spans[-1]]
    for span in reversed(spans[:-1]):
        between = text[span.end : together[0].begin].strip()
        if not re.fullmatch(r",|;|,?\s*(?:and|or|&)", between):
            break
        together.insert(0, span)
    tail = re.match(r"\s*(\\?%|percent|pct)", text[spans[-1].end :])
    return "; ".join(span.content for span in together) + (r"\%" if tail else "")


def breaks_off(text: str) -> bool:
    """Whether a text ends where no sentence, formula or list can: behind an operator, within brackets."""
    rest = text.rstrip().rstrip("*_`")
    if re.search(r"\][^\[\]]*,[^\[\]]*\[$", rest):  # ]2, 5[, an open interval
        return opens_formula(text)
    command = _ENDS_IN_COMMAND.search(rest)
    if _ENDS_IN_OPERATOR.search(rest) or command and command[1] not in _WHOLE_COMMANDS:
        return True
    depth = 0
    for symbol in re.findall(r"\\[()\[\]]|[()\[\]]", rest[-200:]):
        depth = max(depth + (symbol in ("(", "[")) - (symbol in (")", "]")), 0)
    return depth > 0 or opens_formula(text)
