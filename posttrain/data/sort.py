"""`data: {name: sort}`: sort four to seven digits. A task small enough to be learned on two CPU cores.

    prompt "52913>"   answer "12359"

A model is warmed up on the completions of a teacher that errs, then learns from an exact-match reward. All rows
follow from the seed; the train and test splits share no prompt.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Annotated

from annotated_types import Ge, Le
from pydantic.dataclasses import dataclass

from posttrain.settings import STRICT

SHORTEST, LONGEST = 4, 7


@dataclass(frozen=True, config=STRICT)
class Sort:
    size: Annotated[int, Ge(1), Le(1_000_000)] = 4096
    """problems of the train split"""
    held_out: Annotated[int, Ge(1), Le(10_000)] = 512
    """problems of the test split"""
    seed: Annotated[int, Ge(0)] = 0
    teacher_accuracy: Annotated[float, Ge(0), Le(1)] = 1.0
    """share of right completions"""
    demonstrations: Annotated[int, Ge(1), Le(100)] = 1
    """completions per problem, each drawn anew"""

    def rows(self, split: str, *, completions: bool) -> Iterator[dict[str, str]]:
        """prompt and answer of each problem of "train" or "test"; with `completions`, the teacher's too."""
        teacher = random.Random(f"sort/teacher/{self.seed}/{split}")
        for digits in self.problems(split):
            row = {"prompt": f"{digits}>", "answer": "".join(sorted(digits))}
            if not completions:
                yield row
                continue
            for _ in range(self.demonstrations):
                right = teacher.random() < self.teacher_accuracy
                yield row | {"completion": row["answer"] if right else mistake(digits, teacher)}

    def problems(self, split: str) -> list[str]:
        """The test split is drawn first, so that it stays the same whatever the size of the train split."""
        rng = random.Random(f"sort/problems/{self.seed}")
        wanted = self.held_out + (self.size if split == "train" else 0)
        drawn: dict[str, None] = {}
        while len(drawn) < wanted:
            length = rng.randint(SHORTEST, LONGEST)
            drawn["".join(rng.choices("0123456789", k=length))] = None
        problems = list(drawn)
        return problems[self.held_out :] if split == "train" else problems[: self.held_out]


def mistake(digits: str, rng: random.Random) -> str:
    """A wrong answer as a careless sorter gives it, never the right one.

    Half swap two unequal neighbours of the right answer, a quarter sort downwards, a quarter copy the problem;
    where that would be right by accident (or impossible), the last digit of the right answer is lost.
    """
    answer = "".join(sorted(digits))
    kind = rng.random()
    unequal = [i for i in range(len(answer) - 1) if answer[i] != answer[i + 1]]
    if kind < 0.5 and unequal:
        i = rng.choice(unequal)
        return answer[:i] + answer[i + 1] + answer[i] + answer[i + 2 :]
    wrong = answer[::-1] if kind < 0.75 else digits
    return wrong if wrong != answer else answer[:-1]
