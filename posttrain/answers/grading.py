"""Grading of final answers in mathematics: one extraction rule, one equality, shared by reward and evaluation.

The answer is the last `\\boxed{...}`, and it has to be closed: a text that stops inside its box or inside its
reasoning has no answer; several boxes in one sentence are a list. Equality is decided exactly where the answer can be
evaluated (maths/value.py) and together with math-verify elsewhere (maths/second_opinion.py). A single comparison may
take arbitrarily long, so grade in a process with a deadline (`grading_pool.grade_many`, or the reward runner); nothing
here uses signals or threads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from posttrain.answers.boxes import last_boxes
from posttrain.answers.canonical import canonical
from posttrain.answers.chat import after_reasoning, own_turn
from posttrain.answers.equal import equal_answers, readable
from posttrain.answers.final_answer import bare, breaks_off, last_expression, stated
from posttrain.answers.gold import answer_of
from posttrain.answers.one_character import plain_characters

AnswerFormat = Literal["boxed", "hash", "flexible"]
"""boxed: the last closed box, or all boxes of its sentence as a list. hash: what follows the last "####" on its line.
flexible: a box, else "####", else what the text states ("the answer is ..."), else the text itself where it is nothing
but an answer, else its last formula or number."""

_ANSWER_TAG = re.compile(r"<answer>((?:(?!<answer>).)*)</answer>", re.DOTALL)
TAIL_LENGTH = 3000  # characters at the end of a text in which its last number is looked for
MAX_ANSWER_LENGTH = 1000  # characters; a longer "answer" is a derivation, not an answer


@dataclass(frozen=True)
class Extraction:
    """The final answer as the text has it, or None and why there is none.

    reason: "boxed", "hash", "statement", "alone", "number" (how it was found); "no box", "unclosed box",
    "unclosed reasoning", "empty box", "no ####", "no number", "cut off", "too long" (why not). The answer's characters
    are plain ones: − is -, ² is ^{2}.
    """

    answer: str | None
    reason: str


@dataclass(frozen=True)
class Grade:
    """`correct` is None where the gold answer itself cannot be read, or where grading ran out of time.

    reason: "equal", "different", "unreadable gold", "timeout", or the extraction's reason for having no answer.
    """

    correct: bool | None
    answer: str | None
    reason: str


def extract_answer(
    text: str,
    answer_format: AnswerFormat = "boxed",
    *,
    prompt_opens_reasoning: bool = False,
    cut_off: bool = False,
) -> Extraction:
    """The final answer of a model's text.

    Reasoning between tags is not searched: an answer has to stand behind it. `prompt_opens_reasoning` is for chat
    templates that put the opening tag into the prompt: then a text without a closing tag is unclosed reasoning.
    `cut_off`: the text stopped at a token limit; a "####" or a number at its very end may be half of one.
    """
    visible = after_reasoning(text, prompt_opens_reasoning)
    if visible is None:
        return Extraction(None, "unclosed reasoning")
    visible = plain_characters(own_turn(visible))
    if answer_format == "boxed":
        return _limited(_boxed(visible))
    if answer_format == "hash":
        return _limited(_after_hash(visible, cut_off))
    if answer_format != "flexible":
        raise ValueError(f"answer_format is {answer_format!r}; choose boxed, hash or flexible")
    return _limited(_flexible(visible, cut_off))


def grade(
    gold: str | int | float | None,
    text: str,
    answer_format: AnswerFormat = "boxed",
    *,
    prompt_opens_reasoning: bool = False,
    cut_off: bool = False,
    rel_tol: float = 0.0,
    abs_tol: float = 0.0,
    number_words: bool = False,
) -> Grade:
    """Grades a model's text against a gold answer: bare LaTeX, a solution with a box, or one with "####".

    Wrong, unreadable and missing answers are False; None says that the gold answer cannot be read: "N/A", a sentence
    without an answer. `rel_tol` and `abs_tol` widen the comparison of numbers, for gold answers that are measurements.
    `number_words`: "forty-two" is 42.
    """
    expected = read_gold(gold)
    extraction = extract_answer(
        text, answer_format, prompt_opens_reasoning=prompt_opens_reasoning, cut_off=cut_off
    )
    if expected is None:
        return Grade(None, extraction.answer, "unreadable gold")
    if extraction.answer is None:
        return Grade(False, None, extraction.reason)
    equal = equal_answers(expected, extraction.answer, rel_tol, abs_tol, number_words)
    return Grade(equal, extraction.answer, "equal" if equal else "different")


def canonical_answer(answer: str | None) -> str | None:
    """A string that equal answers share (1/2, 0.5, \\frac{1}{2} -> "1/2"), for votes and answer entropy."""
    return None if answer is None else canonical(answer)


def read_gold(gold: str | int | float | None) -> str | None:
    """The gold answer as LaTeX, or None if it cannot be read."""
    if gold is None or isinstance(gold, float) and gold != gold:
        return None
    return _read_gold(repr(gold) if isinstance(gold, float) else str(gold))


@lru_cache(maxsize=65536)
def _read_gold(gold: str) -> str | None:
    answer = answer_of(gold)
    return answer if answer is not None and readable(answer) else None


# ---- extraction -----------------------------------------------------------------------------------


def _boxed(text: str) -> Extraction:
    found = last_boxes(text)
    return Extraction(found.answer, found.reason)


def _after_hash(text: str, cut_off: bool) -> Extraction:
    if "####" not in text:
        return Extraction(None, "no ####")
    line, ended, _ = text.rpartition("####")[2].lstrip().partition("\n")
    if cut_off and not ended:
        return Extraction(None, "cut off")
    line = line.strip().strip("*")
    return Extraction(line, "hash") if line else Extraction(None, "no ####")


def _flexible(text: str, cut_off: bool) -> Extraction:
    """A box, unless "the final answer is" stands behind it; else "####", a statement, an answer by itself, the last
    formula or number."""
    marked = _ANSWER_TAG.findall(text)
    if "<answer>" in text:  # closed behind its answer, or broken off
        return _flexible(marked[-1], cut_off=False) if marked else Extraction(None, "cut off")
    text = text.replace("</answer>", "")
    box = last_boxes(text)
    if box.reason != "no box":
        behind = stated(text[box.end :], cut_off) if box.reason == "boxed" else None
        if behind and behind.reason == "final statement":
            return Extraction(behind.answer, "statement")
        return Extraction(box.answer, box.reason)
    found = _after_hash(text, cut_off)
    if found.reason != "no ####":
        return found
    statement = stated(text, cut_off)
    if statement is not None:
        return Extraction(statement.answer, "statement" if statement.answer else statement.reason)
    if not cut_off and (alone := bare(text)) is not None:
        return Extraction(alone, "alone")
    return _last_expression(text, cut_off)


def _last_expression(text: str, cut_off: bool) -> Extraction:
    text = _tail(text)
    if breaks_off(text) or cut_off and re.search(r"[\d$)\]}]$", text.rstrip(" \n.,*")):
        return Extraction(None, "cut off" if re.search(r"\d", text) else "no number")
    answer = last_expression(text)
    return Extraction(answer, "number") if answer else Extraction(None, "no number")


def _tail(text: str) -> str:
    """The last lines of a long text, which begin where no formula is cut in two."""
    if len(text) <= TAIL_LENGTH:
        return text
    start = len(text) - TAIL_LENGTH
    line = max(text.find("\n\n", start), text.find("\n", start))
    sentence = text.find(". ", start)
    begin = line if line >= 0 else sentence
    return text[begin + 1 :] if 0 <= begin < len(text) - 200 else text[start:]


def _limited(found: Extraction) -> Extraction:
    if found.answer is not None and len(found.answer) > MAX_ANSWER_LENGTH:
        return Extraction(None, "too long")
    return found
