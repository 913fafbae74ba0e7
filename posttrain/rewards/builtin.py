"""The built-in rewards for text: mathematics, exact match, format, length.

Each is a plain function: completions and columns in, one number a completion out. 0.0 means wrong, None that the
completion cannot be judged.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Any, Literal

from posttrain.answers.fallback import prepare as import_math_verify
from posttrain.answers.grading import canonical_answer, extract_answer, grade
from posttrain.rewards.hooks import checks_settings, judges_each, prepares, yields_answers

# ---- mathematics


def math_answers(
    completions: Sequence[str],
    *,
    answer_format: Literal["boxed", "hash", "flexible"] = "boxed",
    prompt_opens_reasoning: bool = False,
) -> list[str | None]:
    """The final answers in a spelling that equal answers share; None where a completion gives none."""
    return [
        canonical_answer(
            extract_answer(text, answer_format, prompt_opens_reasoning=prompt_opens_reasoning).answer
        )
        or None  # a box with nothing in it is no answer
        for text in completions
    ]


@prepares(import_math_verify)
@judges_each
@yields_answers(math_answers)
def math_answer(
    completions: Sequence[str],
    *,
    answer: Sequence[Any],
    answer_format: Literal["boxed", "hash", "flexible"] = "boxed",
    prompt_opens_reasoning: bool = False,
    number_words: bool = False,
    **_: Any,
) -> list[float | None]:
    """1.0 if the final answer equals `answer`; 0.0 if it differs or is missing; None where `answer` is unreadable.

    `answer` may be bare LaTeX, a number, a solution with a box, or one with "####". With `number_words`,
    "forty-two" is 42.
    """
    settings: dict[str, Any] = {
        "prompt_opens_reasoning": prompt_opens_reasoning,
        "number_words": number_words,
    }
    return [
        _as_score(grade(gold, text, answer_format, **settings).correct)
        for text, gold in zip(completions, answer, strict=True)
    ]


def _as_score(correct: bool | None) -> float | None:
    return None if correct is None else float(correct)


# ---- exact match


def _normalise(text: str, ignore_case: bool, ignore_whitespace: bool, ignore_punctuation: bool) -> str:
    text = text.strip()
    if ignore_case:
        text = text.casefold()
    if ignore_punctuation:
        text = text.translate(str.maketrans("", "", string.punctuation)).strip()
    return re.sub(r"\s+", "", text) if ignore_whitespace else text


def whole_texts(
    completions: Sequence[str],
    *,
    ignore_case: bool = False,
    ignore_whitespace: bool = False,
    ignore_punctuation: bool = False,
) -> list[str | None]:
    """The whole completion as its answer; None where it is empty."""
    return [
        _normalise(text, ignore_case, ignore_whitespace, ignore_punctuation) or None for text in completions
    ]


@judges_each
@yields_answers(whole_texts)
def exact_match(
    completions: Sequence[str],
    *,
    answer: Sequence[Any],
    ignore_case: bool = False,
    ignore_whitespace: bool = False,
    ignore_punctuation: bool = False,
    **_: Any,
) -> list[float | None]:
    """1.0 if the completion is `answer`, spaces at the ends aside; None where `answer` is missing."""

    def normalise(text: str) -> str:
        return _normalise(text, ignore_case, ignore_whitespace, ignore_punctuation)

    return [
        None if gold is None else float(normalise(text) == normalise(str(gold)))
        for text, gold in zip(completions, answer, strict=True)
    ]


# ---- format


def _check_pattern(*, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from error


@judges_each
@checks_settings(_check_pattern)
def format_regex(completions: Sequence[str], *, pattern: str, **_: Any) -> list[float | None]:
    """1.0 if the regular expression is found in the completion ("." matches newlines; anchor it with \\A and \\Z)."""
    compiled = re.compile(pattern, re.DOTALL)
    return [float(compiled.search(text) is not None) for text in completions]


# ---- length


def _check_limits(*, max_tokens: int, buffer: int) -> None:
    if not 0 < buffer <= max_tokens:
        raise ValueError(f"buffer is {buffer}; it has to lie between 1 and max_tokens ({max_tokens})")


@judges_each
@checks_settings(_check_limits)
def length_penalty(
    completions: Sequence[str],
    *,
    completion_tokens: Sequence[int],
    max_tokens: int,
    buffer: int,
    **_: Any,
) -> list[float | None]:
    """DAPO's soft overlong punishment (Yu et al. 2025, https://arxiv.org/abs/2503.14476, Eq. 13).

    0 up to `max_tokens - buffer` tokens, falling in a straight line to -1 at `max_tokens`, -1 beyond.
    `completion_tokens` is the number of generated tokens; the trainer provides it.
    """
    onset = max_tokens - buffer
    return [max(-1.0, min(0.0, (onset - tokens) / buffer)) for tokens in completion_tokens]


def _check_gram(*, words: int = 3, **_: Any) -> None:
    if words < 1:
        raise ValueError(f"words is {words}; at least one word has to be repeated")


@judges_each
@checks_settings(_check_gram)
def repetition(completions: Sequence[str], *, words: int = 3, **_: Any) -> list[float | None]:
    """Minus the share of runs of `words` words that stood in the completion before: 0.0 repeats nothing, -1.0 is one
    word over and over. Case and punctuation do not count.

    With weight 0 a measure beside the reward that is trained for: a policy that has found out how to please it by
    saying one thing again and again shows here.
    """
    scores: list[float | None] = []
    for text in completions:
        said = re.findall(r"\w+", text.casefold())
        runs = [tuple(said[i : i + words]) for i in range(len(said) - words + 1)]
        scores.append((len(set(runs)) - len(runs)) / len(runs) if runs else 0.0)
    return scores
