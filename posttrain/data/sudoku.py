"""`data: {name: sudoku}`: complete a 4 x 4 grid.

    prompt "3102200002100320>"   puzzle "3102200002100320"   answer "3142243142131324"

Sixteen digits in reading order, 0 for an empty cell. Puzzles are drawn, never taken from a benchmark's file: a grid at
random, then cells at random are emptied, so several solutions may exist and the reward judges by the rules. The
splits share no puzzle; there are only 288 grids, so they do share solutions.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import permutations
from typing import Annotated

from annotated_types import Ge, Le
from pydantic.dataclasses import dataclass

from posttrain.data.files import DataError
from posttrain.settings import STRICT

_PATIENCE = 20_000  # draws without a new puzzle: there are no more


@dataclass(frozen=True, config=STRICT)
class Sudoku:
    size: Annotated[int, Ge(1), Le(1_000_000)] = 4096
    """puzzles of the train split"""
    held_out: Annotated[int, Ge(1), Le(10_000)] = 256
    """puzzles of the test split"""
    seed: Annotated[int, Ge(0)] = 0
    fewest_empty: Annotated[int, Ge(1), Le(16)] = 6
    """empty cells a puzzle"""
    most_empty: Annotated[int, Ge(1), Le(16)] = 10
    teacher_accuracy: Annotated[float, Ge(0), Le(1)] = 1.0
    """share of right completions"""
    demonstrations: Annotated[int, Ge(1), Le(100)] = 1
    """completions a puzzle, each drawn anew"""

    def __post_init__(self) -> None:
        if self.fewest_empty > self.most_empty:
            raise ValueError(
                f"fewest_empty ({self.fewest_empty}) must not exceed most_empty ({self.most_empty})"
            )

    def rows(self, split: str, *, completions: bool) -> Iterator[dict[str, str]]:
        """The puzzles of "train" or "test"; with `completions`, a teacher's grid for each as well."""
        teacher = random.Random(f"sudoku/teacher/{self.seed}/{split}")
        for puzzle, solution in self.problems(split):
            row = {"prompt": f"{puzzle}>", "puzzle": puzzle, "answer": solution}
            if not completions:
                yield row
                continue
            for _ in range(self.demonstrations):
                right = teacher.random() < self.teacher_accuracy
                yield row | {"completion": solution if right else mistake(puzzle, solution, teacher)}

    def problems(self, split: str) -> list[tuple[str, str]]:
        """(puzzle, solution). The test split is drawn first, and stays whatever the train split is."""
        rng = random.Random(f"sudoku/problems/{self.seed}/{self.fewest_empty}/{self.most_empty}")
        grids = all_grids()
        wanted = self.held_out + (self.size if split == "train" else 0)
        drawn: dict[str, str] = {}
        since_last = 0
        while len(drawn) < wanted:
            since_last += 1
            if since_last > _PATIENCE:
                raise DataError(f"sudoku: found only {len(drawn)} of {wanted} different puzzles; lower size")
            solution = rng.choice(grids)
            empty = set(rng.sample(range(16), rng.randint(self.fewest_empty, self.most_empty)))
            puzzle = "".join("0" if i in empty else cell for i, cell in enumerate(solution))
            since_last = since_last if puzzle in drawn else 0
            drawn[puzzle] = solution
        problems = list(drawn.items())
        return problems[self.held_out :] if split == "train" else problems[: self.held_out]


def all_grids() -> list[str]:
    """The 288 grids in which every row, column and 2 x 2 box holds 1 to 4."""
    rows = ["".join(row) for row in permutations("1234")]
    grids = []
    for a in rows:
        for b in (r for r in rows if not set(r[:2]) & set(a[:2]) and _differ(r, a)):
            for c in (r for r in rows if _differ(r, a) and _differ(r, b)):
                for d in (r for r in rows if _differ(r, a) and _differ(r, b) and _differ(r, c)):
                    if not set(c[:2]) & set(d[:2]):
                        grids.append(a + b + c + d)
    return grids


def _differ(one: str, other: str) -> bool:
    return all(x != y for x, y in zip(one, other, strict=True))


def mistake(puzzle: str, solution: str, rng: random.Random) -> str:
    """The solution with one empty cell filled wrongly: never right, since the cell's row then holds a digit twice."""
    cell = rng.choice([i for i, given in enumerate(puzzle) if given == "0"])
    wrong = rng.choice([digit for digit in "1234" if digit != solution[cell]])
    return solution[:cell] + wrong + solution[cell + 1 :]
