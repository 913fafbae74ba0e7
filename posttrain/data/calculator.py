"""`data: {name: calculator}`: products, sums and differences of two-digit numbers, to be had from a tool.

    prompt "17*46"   answer "782"   completion: a call calc(e="17*46"), the tool's "782", "782"

Too hard for a small model's head, easy with a calculator: what is learned is to call it, to copy into the call, and to
copy out of its answer. Rows follow from the seed; the train and test splits share no prompt.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic.dataclasses import dataclass

from posttrain.settings import STRICT

OPERATORS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
Messages = list[dict[str, Any]]


@dataclass(frozen=True, config=STRICT)
class Calculations:
    size: Annotated[int, Ge(1), Le(20_000)] = 4096
    """problems of the train split"""
    held_out: Annotated[int, Ge(1), Le(2_000)] = 512
    """problems of the test split"""
    seed: Annotated[int, Ge(0)] = 0
    teacher_accuracy: Annotated[float, Ge(0), Le(1)] = 1.0
    """share of right completions"""
    demonstrations: Annotated[int, Ge(1), Le(100)] = 1
    """completions per problem, each drawn anew"""

    def rows(self, split: str, *, completions: bool) -> Iterator[dict[str, Any]]:
        """prompt and answer of each problem of "train" or "test"; with `completions`, the teacher's messages too."""
        teacher = random.Random(f"calculator/teacher/{self.seed}/{split}")
        for problem in self.problems(split):
            row = {"prompt": problem, "answer": str(value(problem))}
            if not completions:
                yield row
                continue
            for _ in range(self.demonstrations):
                right = teacher.random() < self.teacher_accuracy
                yield row | {"completion": shown(problem) if right else mistaken(problem, teacher)}

    def problems(self, split: str) -> list[str]:
        """The test split is drawn first, so that it stays the same whatever the size of the train split."""
        rng = random.Random(f"calculator/problems/{self.seed}")
        wanted = self.held_out + (self.size if split == "train" else 0)
        drawn: dict[str, None] = {}
        while len(drawn) < wanted:
            drawn[f"{rng.randint(10, 99)}{rng.choice(list(OPERATORS))}{rng.randint(10, 99)}"] = None
        problems = list(drawn)
        return problems[self.held_out :] if split == "train" else problems[: self.held_out]


def value(problem: str) -> int:
    """What "17*46" comes to. ValueError where it is no problem of this kind."""
    for operator, apply in OPERATORS.items():
        left, found, right = problem.partition(operator)
        if found and left.isdecimal() and right.isdecimal():
            return apply(int(left), int(right))
    raise ValueError(f"{problem!r} is not two numbers with {' or '.join(OPERATORS)} between them")


def shown(problem: str, asked: str | None = None, told: str | None = None) -> Messages:
    """A completion: the call for `asked` (None: the problem), the tool's answer, what is `told` (None: that)."""
    asked = problem if asked is None else asked
    result = str(value(asked))
    call = {"type": "function", "function": {"name": "calc", "arguments": {"e": asked}}}
    return [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "calc", "content": result},
        {"role": "assistant", "content": result if told is None else told},
    ]


def mistaken(problem: str, rng: random.Random) -> Messages:
    """A wrong completion: in six of ten cases a guess without a call, else a digit copied wrongly, into the call or out
    of the tool's answer."""
    kind = rng.random()
    if kind < 0.6:
        guess = other_digit(str(value(problem)), rng)
        return [{"role": "assistant", "content": guess}]
    if kind < 0.8:
        return shown(problem, asked=other_digit(problem, rng))
    return shown(problem, told=other_digit(str(value(problem)), rng))


def other_digit(text: str, rng: random.Random) -> str:
    """The text with one digit replaced by another; a first digit by none that is 0."""
    place = rng.choice([i for i, character in enumerate(text) if character.isdecimal()])
    leads = place == 0 or not text[place - 1].isdecimal()
    choices = [digit for digit in "0123456789" if digit != text[place] and not (leads and digit == "0")]
    return text[:place] + rng.choice(choices) + text[place + 1 :]
