"""Rewards in a file of their own: a worker imports the module of its reward, and nothing heavy with this one."""

from __future__ import annotations

import zlib
from typing import Any

from posttrain.rewards.hooks import yields_answers


def judged(completions: list[str], **_: Any) -> list[float]:
    """Any fixed function of the text: the rewards of a group must differ."""
    return [float(len(set(text)) % 3) for text in completions]


def first_letters(completions: list[str], **_: Any) -> list[str | None]:
    return [text[:1] or None for text in completions]


@yields_answers(first_letters)
def judged_with_answers(completions: list[str], **_: Any) -> list[float]:
    return judged(completions)


@yields_answers(first_letters)
def same_for_a_prompt(completions: list[str], *, prompts: list[str], **_: Any) -> list[float]:
    """Every group is degenerate; prompts differ."""
    return [int(prompt.split("+")[0]) ** 2 / 576 for prompt in prompts]


@yields_answers(first_letters)
def partly_right(completions: list[str], *, prompts: list[str], **_: Any) -> list[float]:
    """1.0 for some responses, so that groups differ; never looks at other responses."""
    return [
        float(zlib.crc32(f"{p}|{c}".encode()) % 5 < 2 + int(p[0]) % 3)
        for p, c in zip(prompts, completions, strict=True)
    ]


def by_letters(completions: list[str], **_: Any) -> list[float]:
    return [float(sum(map(ord, text)) % 7) - 3.0 for text in completions]


def odd_length(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text) % 2) for text in completions]


def short_and_odd(completions: list[str], *, answer: list[str], limit: int = 9, **_: Any) -> list[float]:
    """Reads a column, and a limit of its own."""
    return [float(len(text) % 2) * (len(text) < limit) for text in completions]


def logging_its_own(completions: list[str], log_metric: Any, **_: Any) -> list[float]:
    log_metric("mine", 1.0)
    return [float(len(set(text))) for text in completions]


def first_letter_right(completions: list[str], **_: Any) -> list[float]:
    """1.0 where the first character comes late in the alphabet of characters: known as soon as it stands there."""
    return [float(text[:1] > "O") for text in completions]
