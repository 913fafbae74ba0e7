"""A curriculum over rows that a trainer prepares before it trains: each row carries its number until then.

Pairs are dropped and tokenised behind the reading (`trainers/preference`), so the numbers that `data.order` found go
along as a column, and the order is made of the rows that are left. An epoch's order follows from `train.seed` and the
epoch's number alone: the same on every rank and after a resume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler

from posttrain.data.row_order import Curriculum
from posttrain.rollout.base import stable_seed

ORDER_KEY = "_order_key"
"""Column of the numbers; null where a row has none."""


def with_order_keys(rows: Dataset, curriculum: Curriculum | None) -> Dataset:
    """The rows with their numbers beside them."""
    if curriculum is None:
        return rows
    added: Any = rows.add_column(ORDER_KEY, list(curriculum.keys))  # type: ignore[call-arg]  # upstream's fingerprint is made
    return added


def order_of(rows: Dataset, curriculum: Curriculum | None) -> Curriculum | None:
    """The curriculum of the rows that are left of those."""
    return None if curriculum is None else replace(curriculum, keys=tuple(rows[ORDER_KEY]))


class OrderedRows(Sampler[int]):
    """The rows of each epoch in the curriculum's order. epoch tells the number of the epoch that begins, from 0."""

    def __init__(self, curriculum: Curriculum, *, seed: int, epoch: Callable[[], int]) -> None:
        self._curriculum, self._seed, self._epoch = curriculum, seed, epoch

    def __len__(self) -> int:
        return len(self._curriculum.keys)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(stable_seed(self._seed, "curriculum", self._epoch()))

        def drawn(size: int) -> Sequence[int]:
            return torch.randperm(size, generator=generator).tolist()

        return iter(self._curriculum.order(drawn))


def sampler_in_order(trainer: Any) -> OrderedRows | None:
    """The sampler of a trainer with a `curriculum`; None where it has none."""
    if trainer.curriculum is None:
        return None
    # a share of an epoch is added step by step: rounding must not make 1.0 an epoch 0
    return OrderedRows(
        trainer.curriculum, seed=trainer.args.seed, epoch=lambda: int((trainer.state.epoch or 0.0) + 1e-6)
    )
