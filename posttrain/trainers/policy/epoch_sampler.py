"""TRL's prompt order, the same after a resume.

TRL's sampler draws one permutation an epoch from a generator of its own, which starts over when a run is resumed:
the second epoch would then repeat the first one's order. Here an epoch's permutation follows from its number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from trl.trainer.utils import RepeatSampler


class EpochRepeatSampler(RepeatSampler):
    """`RepeatSampler` with TRL's order in every epoch, wherever the run was resumed.

    epoch  tells the number of the epoch that begins, from 0
    """

    def __init__(self, *arguments: Any, epoch: Callable[[], int], **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle and self.seed is not None:
            self.generator.manual_seed(self.seed)
            for _ in range(self._epoch()):
                torch.randperm(self.num_samples, generator=self.generator)
        return super().__iter__()

    def order(self, epoch: int) -> list[int]:
        """Each prompt's number once, in the order of this epoch, those included that fill no batch at its end."""
        if not self.shuffle:
            return list(range(self.num_samples))
        generator = torch.Generator()
        if self.seed is not None:
            generator.manual_seed(self.seed)
        for _ in range(epoch):
            torch.randperm(self.num_samples, generator=generator)
        return torch.randperm(self.num_samples, generator=generator).tolist()
