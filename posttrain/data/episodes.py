"""`data: {name: episodes, args: {prompt: "Play."}}`: one prompt many times, each with a seed of its own.

For environments that make their problem themselves: an OpenEnv server is reset with the row's column `seed`, and an
environment of one's own is given it. Responses to a row begin alike; the splits share no seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from annotated_types import Ge, Le, MinLen
from pydantic.dataclasses import dataclass

from posttrain.data.decoding import DataError
from posttrain.settings import STRICT

APART = 10**8
"""Between the seeds of the splits."""


@dataclass(frozen=True, config=STRICT)
class Episodes:
    prompt: Annotated[str, MinLen(1)]
    """what the model is told before an environment says more"""
    size: Annotated[int, Ge(1), Le(APART)] = 4096
    """rows of the train split"""
    held_out: Annotated[int, Ge(1), Le(100_000)] = 128
    """rows of the test split"""
    seed: Annotated[int, Ge(0), Le(APART)] = 0
    """of the first row of the train split; each next row has the next"""

    def rows(self, split: str, *, completions: bool) -> Iterator[dict[str, Any]]:
        """prompt and seed."""
        if completions:
            raise DataError("episodes have no completions; train on them with a method that samples")
        first = self.seed + (APART if split == "test" else 0)
        count = self.size if split == "train" else self.held_out
        for place in range(count):
            yield {"prompt": self.prompt, "seed": first + place}
