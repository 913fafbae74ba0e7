"""One rank's rows of the next prompts, for rollouts that draw more prompts than the trainer's loader hands out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import lcm
from typing import Any

from posttrain.rollout.resample import PromptOrder
from posttrain.trainers.engines.rollout_plan import Rows


class PromptRows:
    """Draws prompts for all ranks alike, and gives this rank's rows of them.

    data        rows by their number
    order       which prompt comes next
    size        prompts of one rollout, over all ranks
    group_size  rows a prompt
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        order: PromptOrder,
        *,
        size: int,
        group_size: int,
        rank: int,
        ranks: int,
    ) -> None:
        self.data, self.order = data, order
        self.size, self.group_size, self.rank, self.ranks = size, group_size, rank, ranks
        self._drawn: dict[int, list[int]] = {}  # of rounds that are not done: their prompts, by round

    @property
    def unit(self) -> int:
        """The fewest prompts whose rows the ranks can share equally."""
        return lcm(self.group_size, self.ranks) // self.group_size

    def of_round(self, number: int) -> list[int]:
        """The prompts a round begins with: drawn the first time it is asked for, and the same until it is done."""
        if number not in self._drawn:
            self._drawn[number] = self.order.take(self.size)
        return self._drawn[number]

    @contextmanager
    def drawing(self, number: int) -> Iterator[None]:
        """Around what a round draws beyond its own prompts, behind which it is done. Where it fails, the position is as
        it was: a checkpoint that is written then goes on with this round."""
        position = self.order.position
        try:
            yield
        except BaseException:
            self.order.position = position
            raise
        self._drawn.pop(number)

    def more(self, count: int, avoid: Iterable[int]) -> list[int]:
        """Fresh prompts: `count`, a multiple of `unit`, or as large a one as the data has."""
        found = self.order.take(count, avoid)
        return found[: len(found) // self.unit * self.unit]

    def rows(self, prompts: Sequence[int]) -> Rows:
        """This rank's rows of these prompts, of which each stands for a group."""
        count = len(prompts) * self.group_size // self.ranks
        mine = range(self.rank * count, (self.rank + 1) * count)
        return [dict(self.data[prompts[place // self.group_size]]) for place in mine]

    # Checkpoints hold plain values only.

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.order.position, "drawn": {n: list(rows) for n, rows in self._drawn.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.order.position = state["position"]
        self._drawn = {number: list(rows) for number, rows in state["drawn"].items()}
