"""Which part of a reference is its answer, and which references have none."""

from __future__ import annotations

import re

from posttrain.answers.boxes import last_boxes
from posttrain.answers.final_answer import stated
from posttrain.answers.one_character import plain_characters
from posttrain.answers.spans import mathematics
from posttrain.answers.wording import relation_in_signs

_NOT_GIVEN = frozenset(
    ("", "n/a", "na", "n.a.", "nan", "<na>", "nat", "null", "nil", "[]", "-", "--", "---", "?", "??")
    + (
        "unknown",
        "not available",
        "not applicable",
        "no answer",
        "unanswered",
        "missing",
        "omitted",
        "pending",
    )
    + ("tbd", "todo", "error", "proof", "see solution", "see above", "see below", "[none]")
)
_SAYS_NONE = re.compile(
    r"(?:no|none|not|answer|solution)(?: was| is)? (?:answer|available|applicable|found|given|provided|known|not \w+)\b"
    r"|(?:i )?(?:do not|don't|cannot|can't) (?:know|be determined from|answer)\b"
)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_SENTENCE_WORDS = 5
_VERBS = re.compile(
    r"\b(?:is|are|was|were|be|has|have|had|will|can|could|should|would|do|does|did|see|let|follows?|gives?|proves?|"
    r"shows?|proceed|find|found|get|got|left|need|know|sold|bought|makes?|costs?|says?|ate|spent|remains?)\b",
    re.IGNORECASE,
)


def answer_of(gold: str) -> str | None:
    """The answer a reference gives: behind "####", in its box, where it is stated, or the whole of it.

    None for what is no answer: "N/A", a sentence or a solution without a marked answer.
    """
    gold = plain_characters(gold)
    if "####" in gold:
        gold = gold.rpartition("####")[2].strip()
    elif "\\boxed" in gold or "\\fbox" in gold:
        gold = re.sub(r"\\fbox(?![A-Za-z])", r"\\boxed", gold)
        gold = re.sub(r"\\boxed\s+(\w)", r"\\boxed{\1}", gold)
        gold = last_boxes(gold).answer or ""
    elif is_prose(gold) and relation_in_signs(gold) is None:
        found = stated(gold, cut_off=False)
        gold = (found.answer if found else None) or ""
    gold = gold.strip()
    said = gold.strip("$. ()").lower()
    return None if said in _NOT_GIVEN or _SAYS_NONE.match(said) else gold or None


def is_prose(text: str) -> bool:
    r"""Whether a text is a sentence rather than an answer, which may be a few words or a unit: "12 square feet".

    What stands in \text{...} was set as an answer, whatever its length.
    """
    for span in reversed(mathematics(text)):
        text = text[: span.begin] + " " + text[span.end :]
    if not re.match(r"[A-Za-z]{2}", text.strip()):  # a formula and the conditions on it
        text = re.sub(
            r"(?<=\S)[\s,]*\b(?:where|with|for|if|when|such that|provided)\b.*", "", text, flags=re.DOTALL
        )
    text = re.sub(r"\\(?:text\w*|mbox|mathrm|operatorname)\s*\{[^{}]*\}|\\[A-Za-z]+", " ", text)
    words = _WORD.findall(text)
    tells = bool(_VERBS.search(text))
    ends = bool(re.search(r"[a-z]{2}[.!?]$", text.strip()))
    return (
        len(words) >= _SENTENCE_WORDS
        and (tells or ends)
        or len(words) >= 3
        and tells
        and ends
        or len(words) > 12
    )
