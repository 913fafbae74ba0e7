"""TRL's prompt order, or a curriculum's, the same after a resume.

TRL's sampler draws one permutation an epoch from a generator of its own, which starts over when a run is resumed:
the second epoch would then repeat the first one's order. Here an epoch's permutation follows from its number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from trl.trainer.utils import RepeatSampler

from posttrain.data.row_order import Curriculum
from posttrain.rollout.base import stable_seed


class EpochRepeatSampler(RepeatSampler):
    """`RepeatSampler` with TRL's order in every epoch, wherever the run was resumed.

    epoch       tells the number of the epoch that begins, from 0
    curriculum  orders the rows instead, anew in each epoch; not shuffled, within its bands they keep their order
    """

    def __init__(
        self,
        *arguments: Any,
        epoch: Callable[[], int],
        curriculum: Curriculum | None = None,
        **named: Any,
    ) -> None:
        super().__init__(*arguments, **named)
        self._epoch = epoch
        self._curriculum = curriculum

    def __iter__(self) -> Iterator[int]:
        if self._curriculum is not None:
            return self._in_order(self.order(self._epoch()))
        if self.shuffle and self.seed is not None:
            self.generator.manual_seed(self.seed)
            for _ in range(self._epoch()):
                torch.randperm(self.num_samples, generator=self.generator)
        return super().__iter__()

    def _in_order(self, order: Sequence[int]) -> Iterator[int]:
        """Batches and repetitions as TRL makes them of rows in this order."""
        places = RepeatSampler(
            self.data_source, self.mini_repeat_count, self.batch_size, self.repeat_count, shuffle=False
        )
        return (order[place] for place in places)

    def order(self, epoch: int) -> list[int]:
        """Each prompt's number once, in the order of this epoch, those included that fill no batch at its end."""
        if self._curriculum is not None:
            return self._curriculum.order(self._permutation(epoch))
        if not self.shuffle:
            return list(range(self.num_samples))
        generator = torch.Generator()
        if self.seed is not None:
            generator.manual_seed(self.seed)
        for _ in range(epoch):
            torch.randperm(self.num_samples, generator=generator)
        return torch.randperm(self.num_samples, generator=generator).tolist()

    def _permutation(self, epoch: int) -> Callable[[int], Sequence[int]]:
        """Draws orders of 0 to n - 1 for this epoch; the identity where nothing is shuffled."""
        if not self.shuffle:
            return range
        generator = torch.Generator()
        if self.seed is not None:
            generator.manual_seed(stable_seed(self.seed, "curriculum", epoch))
        return lambda size: torch.randperm(size, generator=generator).tolist()
