"""`data: {name: countdown}`: reach a target from given numbers, each used once, with + - * /.

    prompt "30,100,93=23>"   numbers "30,100,93"   target 23   answer "93-(100-30)"

Problems are drawn, never taken from a benchmark's file: numbers first, then a random expression over them, whose
value is the target; so each has a solution. The train and test splits share no problem, the order of the numbers
aside (unless it is part of the problem: `in_order`). `posttrain.rewards.puzzles.countdown` judges any expression,
not only this one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction
from typing import Annotated

from annotated_types import Ge, Gt, Le
from pydantic.dataclasses import dataclass

from posttrain.data.files import DataError
from posttrain.settings import STRICT

_PATIENCE = 20_000  # draws without a new problem: there are no more
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}


@dataclass(frozen=True, config=STRICT)
class Countdown:
    size: Annotated[int, Ge(1), Le(1_000_000)] = 4096
    """problems of the train split"""
    held_out: Annotated[int, Ge(1), Le(10_000)] = 256
    """problems of the test split"""
    seed: Annotated[int, Ge(0)] = 0
    numbers: Annotated[int, Ge(2), Le(6)] = 3
    """numbers a problem"""
    largest: Annotated[int, Gt(1), Le(1_000_000)] = 100
    """numbers are 1 .. largest"""
    largest_target: Annotated[int, Gt(1), Le(1_000_000_000)] = 100
    """targets are 1 .. largest_target"""
    operators: str = "+-*/"
    in_order: bool = False
    """solutions keep the numbers' order, left to right: only operators to choose"""
    teacher_accuracy: Annotated[float, Ge(0), Le(1)] = 1.0
    """share of right completions"""
    demonstrations: Annotated[int, Ge(1), Le(100)] = 1
    """completions per problem, each drawn anew"""

    def __post_init__(self) -> None:
        if not self.operators or set(self.operators) - set("+-*/"):
            raise ValueError(f"operators are some of + - * /, not {self.operators!r}")

    def rows(self, split: str, *, completions: bool) -> Iterator[dict[str, str | int]]:
        """The problems of "train" or "test"; with `completions`, a teacher's expression for each as well."""
        teacher = random.Random(f"countdown/teacher/{self.seed}/{split}")
        for numbers, target, answer in self.problems(split):
            given = ",".join(map(str, numbers))
            row: dict[str, str | int] = {
                "prompt": f"{given}={target}>",
                "numbers": given,
                "target": target,
                "answer": answer,
            }
            if not completions:
                yield row
                continue
            for _ in range(self.demonstrations):
                right = teacher.random() < self.teacher_accuracy
                yield row | {"completion": answer if right else self.mistake(numbers, target, teacher)}

    def problems(self, split: str) -> list[tuple[tuple[int, ...], int, str]]:
        """(numbers, target, an expression). The test split is drawn first, and stays whatever the train split is."""
        rng = random.Random(f"countdown/problems/{self.seed}/{self.numbers}/{self.largest}/{self.operators}")
        key_of = tuple if self.in_order else sorted  # out of order, an order is no problem of its own
        wanted = self.held_out + (self.size if split == "train" else 0)
        drawn: dict[tuple[tuple[int, ...], int], tuple[tuple[int, ...], int, str]] = {}
        since_last = 0
        while len(drawn) < wanted:
            since_last += 1
            if since_last > _PATIENCE:
                raise DataError(
                    f"countdown: found only {len(drawn)} of {wanted} different problems; raise largest or lower size"
                )
            numbers = tuple(rng.randint(1, self.largest) for _ in range(self.numbers))
            value, text = self.expression(numbers, rng)
            if value is not None and value.denominator == 1 and 1 <= value <= self.largest_target:
                key = (tuple(key_of(numbers)), int(value))
                since_last = since_last if key in drawn else 0
                drawn.setdefault(key, (numbers, int(value), text))
        problems = list(drawn.values())
        return problems[self.held_out :] if split == "train" else problems[: self.held_out]

    def expression(self, numbers: tuple[int, ...], rng: random.Random) -> tuple[Fraction | None, str]:
        """A random expression over all numbers, and its value (None: a division by zero)."""
        parts: list[tuple[Fraction | None, str, int]] = [(Fraction(n), str(n), 3) for n in numbers]
        if not self.in_order:
            rng.shuffle(parts)
        while len(parts) > 1:
            i = 0 if self.in_order else rng.randrange(len(parts) - 1)
            parts[i : i + 2] = [_joined(parts[i], rng.choice(self.operators), parts[i + 1])]
        value, text, _ = parts[0]
        return value, text

    def mistake(self, numbers: tuple[int, ...], target: int, rng: random.Random) -> str:
        """An expression over the same numbers that misses the target, as a careless player gives it."""
        for _ in range(100):
            value, text = self.expression(numbers, rng)
            if value != target:
                return text
        return ",".join(map(str, numbers))  # every expression hits: nothing wrong can be written with them


def _joined(
    left: tuple[Fraction | None, str, int], operator: str, right: tuple[Fraction | None, str, int]
) -> tuple[Fraction | None, str, int]:
    """Two parts joined, with the brackets that are needed and no others."""
    level = _PRECEDENCE[operator]
    first = left[1] if left[2] >= level else f"({left[1]})"
    second = right[1] if right[2] > level or (right[2] == level and operator in "+*") else f"({right[1]})"
    a, b = left[0], right[0]
    value = None
    if a is not None and b is not None:
        if operator == "+":
            value = a + b
        elif operator == "-":
            value = a - b
        elif operator == "*":
            value = a * b
        elif b != 0:
            value = a / b
    return value, f"{first}{operator}{second}", level
