r"""Where the boxes of a text stand: \boxed{...} and \fbox{...}, closed, and those that one sentence lists together."""

from __future__ import annotations

import re
from dataclasses import dataclass

_BRACE = re.compile(
    r"\\{1,4}(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL
)  # \\boxed: escaped once too often, as in JSON
_OPENING = re.compile(r"\\{1,4}(?:boxed|fbox)\s*\{")
_OUTSIDE = re.compile(r"[\n$]|\\[\])]|[.!?]\s")  # what stands between two boxes, but not inside one
_BEGUN = re.compile(r"\\(?:b(?:o(?:x(?:e(?:d\s*)?)?)?)?|f(?:b(?:o(?:x\s*)?)?)?)$")

_ENDS_SENTENCE = re.compile(r"[.!?](?:\s|$)|\n\s*\n")
_MARKUP = re.compile(r"\\[()\[\]]|\\{1,4}(?:[,;:!> ]|q?quad(?![A-Za-z])|newline(?![A-Za-z]))|\\\\|[$*{}&\s]")
_CORRECTS = re.compile(
    r"\b(?:no|not|wait|actually|instead|but|rather|correct\w*|should|however|which|equals?|so|thus|hence|therefore|"
    r"simplif\w*|becomes?|that is|giv(?:es|ing)|mod(?:ulo)?|from|since|because|check\w*|again|same)\b"
    r"|i\.e\.|=\s*$|\\(?:approx|implies|equiv|to|pmod|[lL]?ong?\w*arrow|[rR]ightarrow)(?![A-Za-z])|[+\-*/<>^]",
    re.IGNORECASE,
)
_LABEL = re.compile(r"[A-Za-z](?:_\{?\w+\}?)?(?:\([a-z]\))?\s*=\s*$")
_WORDS_BETWEEN = 8  # more of them tell a story, of which the last box is the end


@dataclass(frozen=True)
class Boxes:
    """`answer` is None where the text has no box that closes, and `reason` says why. `end`: where the last one ends."""

    answer: str | None
    reason: str
    end: int = -1


def last_boxes(text: str) -> Boxes:
    """The content of the last box; of several in one sentence, all of them as a list ("1; 2")."""
    if _BEGUN.search(text):
        return Boxes(None, "unclosed box")
    opened, closed, last = _braces(text)
    if last < 0:
        return Boxes(None, "no box")
    if last not in closed:
        return Boxes(None, "unclosed box")
    around = [begin for begin in opened if begin < last]
    if around and not _OUTSIDE.search(text, around[-1], last):
        return Boxes(None, "unclosed box")  # \boxed{\boxed{5}: the outer one is still open
    outer = _outermost(closed)
    end = outer[-1][1]
    contents = [_content(text[begin:stop]) for begin, stop in _listed_together(text, outer)]
    if not all(contents):
        return Boxes(None, "empty box", end)
    return Boxes("; ".join(dict.fromkeys(contents)), "boxed", end)


def _braces(text: str) -> tuple[list[int], dict[int, int], int]:
    """Where boxes still open begin, where the others begin and end, where the last one begins (-1: none)."""
    opened: list[tuple[int, bool]] = []  # where each brace still open begins, and whether it is a box's
    closed: dict[int, int] = {}
    last = -1
    for match in _BRACE.finditer(text):
        if match.group() == "{" or "box" in match.group():
            is_box = len(match.group()) > 1
            last = match.end() if is_box else last
            opened.append((match.end(), is_box))
        elif match.group() == "}" and opened:
            begin, is_box = opened.pop()
            if is_box:
                closed[begin] = match.start()
    return [begin for begin, is_box in opened if is_box], closed, last


def _outermost(closed: dict[int, int]) -> list[tuple[int, int]]:
    """(begin, end) of the boxes that stand in no other, in order."""
    result: list[tuple[int, int]] = []
    for begin, end in sorted(closed.items()):
        if not result or begin > result[-1][1]:
            result.append((begin, end))
    return result


def _content(inner: str) -> str:
    return _OPENING.sub("{", inner).strip()


def _listed_together(text: str, boxes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The last box and those before it that the same sentence lists with it."""
    together = [boxes[-1]]
    for begin, end in reversed(boxes[:-1]):
        between = _OPENING.sub("", text[end + 1 : together[0][0]])
        if not _joins(between):
            break
        together.insert(0, (begin, end))
    return together


def _joins(between: str) -> bool:
    r"""Whether two boxes with this between them are one list: "\boxed{1} and \boxed{2}".

    "\boxed{3}, no: \boxed{4}" is a correction and "\boxed{2/4} = \boxed{1/2}" a derivation: there the last one counts.
    """
    if _ENDS_SENTENCE.search(between):
        return False
    said = _LABEL.sub("", re.sub(r"[\s$(\\\[]+$", "", between))
    if _CORRECTS.search(said):
        return False
    plain = _MARKUP.sub(" ", re.sub(r"\\(?:text|mbox|textbf|mathrm)\s*\{", " ", said))
    words = re.findall(r"[^\W\d_]+", plain)
    if not words and not re.search(r"[,;]", plain):
        return "\n" not in between and "$$" not in between and "\\]" not in between
    return len(words) <= _WORDS_BETWEEN and ("\n" not in between.strip() or len(words) <= 1)
