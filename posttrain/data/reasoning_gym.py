"""`data: {name: reasoning_gym, args: {task: leg_counting}}`: the generated problems of the package reasoning-gym.

Each row carries what makes its problem again, so that the package's own scorer can judge an answer
(rewards: [{name: reasoning_gym}]). Rows follow from the seed and the package's version.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import field
from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic.dataclasses import dataclass

from posttrain.data.decoding import DataError
from posttrain.recipe.errors import suggest
from posttrain.settings import STRICT

APART = 10**8
"""Between the seeds of the splits: the package draws problem i from seed + i."""
INSTALL = "pip install 'posttrain[reasoning-gym]'"


@dataclass(frozen=True, config=STRICT)
class GymTask:
    task: str
    """name of the package's data set: leg_counting, countdown, zebra_puzzles, ..."""
    size: Annotated[int, Ge(1), Le(APART)] = 4096
    """problems of the train split, less those that the test split has too"""
    held_out: Annotated[int, Ge(1), Le(100_000)] = 256
    """problems of the test split"""
    seed: Annotated[int, Ge(0), Le(APART)] = 0
    config: dict[str, Any] = field(default_factory=dict)
    """the data set's own settings, such as min_animals: 3"""

    def rows(self, split: str, *, completions: bool) -> Iterator[dict[str, Any]]:
        """prompt, answer, and `puzzle`: what makes the problem again, as JSON. DataError says what cannot be."""
        test = self._made("test")
        held = {test[i]["question"] for i in range(self.held_out)} if split == "train" else set()
        source = self._made("train") if split == "train" else test
        for index in range(self.size if split == "train" else self.held_out):
            entry = source[index]
            if entry["question"] in held:
                continue
            answer = str(entry["answer"])
            row = {"prompt": entry["question"], "answer": answer, "puzzle": self._puzzle(split, index)}
            yield row | ({"completion": f"<answer>{answer}</answer>"} if completions else {})

    def _puzzle(self, split: str, index: int) -> str:
        return json.dumps({"task": self.task, "config": self._config(split), "index": index}, sort_keys=True)

    def _config(self, split: str) -> dict[str, Any]:
        test = split == "test"
        own = {"size": self.held_out if test else self.size, "seed": self.seed + APART * test}
        return {**self.config, **own}

    def _made(self, split: str) -> Any:
        try:
            from reasoning_gym.factory import DATASETS, create_dataset
        except ImportError as error:
            raise DataError(f"reasoning_gym needs the package reasoning-gym ({error}): {INSTALL}") from None
        if self.task not in DATASETS:
            near = suggest(self.task, DATASETS) or f"; it has {', '.join(sorted(DATASETS))}"
            raise DataError(f"args: reasoning-gym has no task {self.task!r}{near}")
        if taken := sorted({"size", "seed"} & self.config.keys()):
            raise DataError(f"args: config: {taken[0]!r} is written beside task, not in config")
        try:
            return create_dataset(self.task, **self._config(split))
        except (TypeError, ValueError, AssertionError) as error:
            raise DataError(f"args: config: {self.task}: {error}") from None
