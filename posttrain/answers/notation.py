"""One spelling for what LaTeX and people write in many: spaces, fractions, signs, fonts, thousands, units."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from posttrain.answers.one_character import CURRENCY_SIGNS, plain_characters

CURRENCY = "¤"  # one sign for every currency's sign

_MONEY = str.maketrans({sign: CURRENCY for sign in CURRENCY_SIGNS})

_BREAK = "\x01"  # stands for \\ while commands are rewritten
_TEXT_COMMANDS = (
    r"(?:text(?:bf|it|rm|sf|tt|normal|sc)?|mbox|mathrm|mathsf|mathtt|textnormal|hbox|operatorname\*?)"
)

_TWICE_ESCAPED = re.compile(
    r"(?<!\\)\\\\(?=(?:[dtc]?frac|sqrt|pi|left|right|text\w*|math\w+|cdot|times|infty|cup|cap|in|pm|le|ge|leq|geq|neq?|"
    r"binom|log|ln|sin|cos|tan|begin|end|overline|angle|circ|alpha|beta|theta|gamma|lambda|quad|ldots|dots|boxed)"
    r"(?![A-Za-z])|[{}%$,;!](?!\s*$))"
)

_MONEY_NAMES = r"(?:Rs\.?|INR|USD|EUR|GBP|CNY|RMB|JPY|CAD|AUD|CHF)"
_RULES: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\(?:[ ]|$)", " "),
        (r"^([*`]+)(?=[^*`])(.*)\1$", r"\2"),  # markdown around the whole
        (r'^["“]([^"“”]*)["”]$', r"\1"),
        (r"\\lg(?![A-Za-z])", r"\\log"),
        (r"^(?:\\text\s*\{\s*)?(?:minus|negative)\s*\}?\s*(?=\d)", "-"),
        (r"(?<=\d)\s*\^\s*(?:\{\s*o\s*\}|o(?![A-Za-z]))", r"^\\circ "),
        (r"\\checkmark(?![A-Za-z])", ""),
        (r"\\(?:begin|end)\{(?:align|equation|gather|aligned|gathered)\*?\}", " "),
        (r"(?:USD|US|CAD|AUD)?\s*\\\$", CURRENCY),
        (rf"\\{_TEXT_COMMANDS}\s*\{{\s*{CURRENCY}\s*\}}", CURRENCY),
        (rf"^(?:\\{_TEXT_COMMANDS}\s*\{{\s*)?{_MONEY_NAMES}\s*\}}?\s*(?=\d)", CURRENCY),
        (rf"(?<=\d)\s*(?:\\{_TEXT_COMMANDS}\s*\{{\s*)?{_MONEY_NAMES}\s*\}}?$", CURRENCY),
        (r"^[^\W\d_a-zA-Z]{1,12}(?:是|为|は|:|=|\s)\s*(?=[-\d\\(\[])", ""),  # the answer is, in other scripts
        (r"\$", " "),
        (r"\\[()\[\]]", " "),
        (r"(?<=\d)(?:\{,\}|,\s*\\!|\\!\s*,)\s*(?=\d{3}(?!\d))", ""),
        (r"\{,\}", ","),
        (r"\\!", ""),
        (r"\\[,;:>]|~|\\q?quad\b|\\(?:thin|med|thick)space\b|\\enspace\b|\\hspace\*?\{[^{}]*\}", " "),
        (r"\\(?:left|right|middle)\s*(?=[.])[.]", ""),
        (r"\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|scriptstyle|limits|nolimits|boldmath|"
         r"rm|bf|it|sf|tt|large|Large|normalsize|small|huge|centering)(?![A-Za-z])", ""),
        (r"\\color\s*\{[^{}]*\}", ""),
        (r"\\textcolor\s*\{[^{}]*\}", ""),
        (r"\\phantom\{[^{}]*\}", ""),
        (r"\\(?:[dtcs]|nice|x)frac(?![A-Za-z])", r"\\frac"),
        (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
        (r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}", r"\\binom{\1}{\2}"),
        (r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}", r"\\frac{\1}{\2}"),
        (r"\\(?:geqslant|geqq|geq)(?![A-Za-z])|>=", r"\\ge "),
        (r"\\(?:leqslant|leqq|leq)(?![A-Za-z])|<=", r"\\le "),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\neq(?![A-Za-z])|\\not\s*=|!=", r"\\ne "),
        (r"\\(?:approxeq|simeq|thickapprox|doteq)(?![A-Za-z])|\\sim(?![A-Za-z])", r"\\approx "),
        (r"\\(?:varnothing|O)(?![A-Za-z])", r"\\emptyset"),
        (r"\\(?:infin)(?![A-Za-z])|\\text\{\s*inf(?:inity)?\s*\}", r"\\infty "),
        (r"\\l?vert(?![A-Za-z])|\\rvert(?![A-Za-z])|\\mid(?![A-Za-z])", "|"),
        (r"\\l(?:brace|curly)(?![A-Za-z])", r"\\{"),
        (r"\\r(?:brace|curly)(?![A-Za-z])", r"\\}"),
        (r"\\lbrack(?![A-Za-z])", "["),
        (r"\\rbrack(?![A-Za-z])", "]"),
        (r"\\(?:mathbb|Bbb)\s*\{?\s*([RNZQC])\s*\}?(?![A-Za-z])", r"\\\1 "),
        (r"\\(?:mathbf|vec|hat|boldsymbol|bm|overrightarrow)\s*\{\s*(?:\\mathbf\s*\{)?\s*\\?([ijk])(?:math)?\s*\}?\s*\}",
         r"\\unit\1 "),
        (r"\\(?:overline|overleftrightarrow|overrightarrow)\s*\{\s*([A-Z]{2})\s*\}", r"{\1}"),
        (r"\\(?:mathbf|mathit|mathcal|mathnormal|boldsymbol|bm|underline|vec|hat|overrightarrow|ensuremath)(?![A-Za-z])",
         ""),
        (r"^\s*\\(?:therefore|implies|(?:Long)?[Rr]ightarrow)(?![A-Za-z])", ""),
        (r"\\(?:blacksquare|square|Box|qed)(?![A-Za-z])\s*$", ""),
        (r"(?:^|(?<=[\s+\-=(]))\{\s*\}", ""),
        (r"(?<=\d)\{\s*(\\frac\s*(?:\{\d+\}|\d)\s*(?:\{\d+\}|\d))\s*\}", r"\1"),
        (r"\\operatorname\*?\s*\{\s*(sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|ln|log|exp)\s*\}", r"\\\1 "),
        (r"\\(?:mathrm|operatorname)\s*\{\s*([eid])\s*\}", r" \1 "),  # upright, the constants and the differential
        (rf"\\{_TEXT_COMMANDS}(?![A-Za-z])\s*\{{", r"\\text{"),
        (r"\\text\{\s*([ei])\s*\}(?=\s*\^)|^\\text\{\s*([a-z])\s*\}$", r"\1\2"),
        *[(r"(\\text\{[^{}]*)\^\s*\{\s*(-?\d+)\s*\}", r"\1^\2")] * 3,  # \text{kg m s^{-2}}
        # one upright letter behind a number is a unit; i, e and any other letter is mathematics
        (r"(?<=[\w})^])\s*\\text\{\s*([a-zA-Z])\s*\}(?<![msghlLAVJNWKCFT]\})(?<![msghlLAVJNWKCFT] \})", r" \1"),
        (r"\^\s*\{?\s*\\prime\s*\\prime\s*\}?", "''"),
        (r"\^\s*\{?\s*\\prime\s*\}?", "'"),
        (r"\\degrees?(?![A-Za-z])|\\text\{\s*\^\\circ\s*\}", r"^\\circ "),
        (r"\\deg(?![A-Za-z])", r"^\\circ "),
        (r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![A-Za-z])", r"^\\circ "),
        (r"\{\s*\}\s*(?=\^)", ""),
        (r"\\text\{\s*\}", ""),
        (r"(?<=\d)\s*\^?\s*\{?\s*(?:\\text\{\s*)?(?:st|nd|rd|th)\s*\}?\s*\}?\s*$", ""),
        (r"\\%", "%"),
        (r"\\([#&_])", r"\1"),
        (r"\.\.\.+|\\ldots(?![A-Za-z])|\\dots[cbmio]?(?![A-Za-z])|\\cdots(?![A-Za-z])", r"\\ldots "),
        (r"\*\*", "^"),
        (r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", r"\\times "),
        (r"(?<![A-Za-z\\])(?:np|math|numpy)\.(?=[a-z])", ""),
        (r"√\s*\(", r"\\sqrt("),
        (r"√\s*(\d+|[A-Za-z])", r"\\sqrt{\1}"),
        (r"(?<![A-Za-z\\])sqrt\s*(?=[({])", r"\\sqrt"),
        (r"√\s*(?=\{)", r"\\sqrt"),
        (r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi "),
        (r"(?<![A-Za-z\\])exp(?=\s*\()", r"\\exp"),
        (r"(?:\{\s*\}\s*)?(?<![\w}])[_^]\s*\{?(\d+)\}?\s*C\s*_\s*\{?\s*(\d+)\s*\}?", r"\\binom{\1}{\2}"),
        (r"(?<![A-Za-z\\])C\s*_\s*\{?\s*(\d+)\s*\}?\s*\^\s*\{?\s*(\d+)\s*\}?", r"\\binom{\1}{\2}"),
        (r"(?<=[\d)\]}])(or|and)(?=[A-Za-z\d(\[\\-])", r" \1 "),
        (r"(?<![A-Za-z\\])(?:infinity|oo)(?![A-Za-z])", r"\\infty "),
        (r"(?<![A-Za-z\\])(sin|cos|tan|ln|log|arcsin|arccos|arctan)(?=\s*[(\d])", r"\\\1 "),
        (r"\s+", " "),
    ]
]  # fmt: skip


@lru_cache(maxsize=16384)
def tidy(text: str) -> str:
    """The answer in one spelling: no delimiters, no fonts, no spacing commands, plain names for every relation."""
    text = _escaped_once(plain_characters(text)).translate(_MONEY).replace("\\\\", _BREAK).strip()
    text = re.sub(r"\\textcolor\s*\{[^{}]*\}", "", text)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = _brace_sqrt(text)
    text = re.sub(rf"(?:[.,;:]|{_BREAK}|\s)+$", "", text).strip()
    text = re.sub(rf"^(?:[,;:]|{_BREAK}|\s)+", "", text)
    return _unworded(strip_braces(text.replace(_BREAK, "\\\\")))


def _escaped_once(text: str) -> str:
    r"""\\frac{1}{2}, as it stands in JSON or Python source, is \frac{1}{2}; there a line break of a matrix is \\\\."""
    return text.replace("\\\\", "\\") if _TWICE_ESCAPED.search(text) else text


def _unworded(text: str) -> str:
    r"""\text{ \frac{1}{2} } is a fraction: no word holds braces."""
    if not text.startswith(r"\text{") or "{" not in text[6:] or closing(text, 5) != len(text) - 1:
        return text
    return strip_braces(text[6:-1])


def _brace_sqrt(text: str) -> str:
    r"""\sqrt(5) means the root of the whole bracket, although LaTeX would take the "(" alone."""
    start = text.find(r"\sqrt(")
    while start >= 0:
        end = closing(text, start + 5)
        if end < 0:
            return text
        text = f"{text[: start + 5]}{{{text[start + 6 : end]}}}{text[end + 1 :]}"
        start = text.find(r"\sqrt(", start + 5)
    return text


_SYMBOL = re.compile(r"\\[A-Za-z]+|\\.|[^\\]|\\$", re.DOTALL)


def symbols(text: str, start: int = 0) -> Iterator[tuple[int, str]]:
    r"""(position, symbol) of each symbol from `start` on: a command \name, an escaped \{ \} or \\, or one character."""
    return ((match.start(), match.group()) for match in _SYMBOL.finditer(text, start))


def closing(text: str, start: int) -> int:
    """Position of the bracket that closes the one at `start`, or -1. Half-open intervals may mix ( and ]."""
    depth = 0
    curly = text.startswith(("{", "\\{"), start)
    for position, symbol in symbols(text, start):
        if symbol in ("{", "\\{") if curly else symbol in ("(", "["):
            depth += 1
        elif symbol in ("}", "\\}") if curly else symbol in (")", "]"):
            depth -= 1
            if depth == 0:
                return position
    return -1


def split_top(text: str, separators: tuple[str, ...]) -> list[tuple[str, str]]:
    """Pieces between separators that stand outside all brackets, each with the separator that ends it ("" last)."""
    pieces, depth, begin, inside_bars = [], 0, 0, False
    environment = 0
    skip_to = 0
    for position, symbol in symbols(text):
        if position < skip_to:
            continue
        if symbol == r"\begin":
            environment += 1
        elif symbol == r"\end":
            environment -= 1
        elif symbol in ("(", "[", "{", "\\{", r"\lfloor", r"\lceil", r"\langle"):
            depth += 1
        elif symbol in (")", "]", "}", "\\}", r"\rfloor", r"\rceil", r"\rangle"):
            depth -= 1
        elif symbol == "|":
            inside_bars = not inside_bars
        if depth == 0 and not environment and (not inside_bars or text.count("|") % 2):
            for separator in separators:
                if text.startswith(separator, position):
                    pieces.append((text[begin:position], separator))
                    begin = skip_to = position + len(separator)
                    break
    return [*pieces, (text[begin:], "")]


def balanced(text: str) -> bool:
    """Whether every brace is closed."""
    depth = 0
    for _, symbol in symbols(text):
        depth += (symbol == "{") - (symbol == "}")
        if depth < 0:
            return False
    return depth == 0


def strip_braces(text: str) -> str:
    """Without a pair of plain braces around the whole."""
    text = text.strip()
    while text.startswith("{") and closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return text
