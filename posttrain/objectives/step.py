"""One optimizer step without a trainer: who is called when, and with which mask.

A trainer does the same with engines and ranks around it; replay and the tests run this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from posttrain.objectives.base import AllSum, Objective, StepTotals, TokenBatch


@dataclass(frozen=True)
class StepResult:
    """What one rank gets from one optimizer step.

    losses   one share () a micro-batch; over all micro-batches and ranks they add up to the step's loss
    masks    (B, T) a micro-batch: the loss mask after `keep`
    batches  the micro-batches as the loss saw them, `step` and `index` filled in
    totals   the counts the shares were divided by
    """

    losses: list[Tensor]
    masks: list[Tensor]
    batches: list[TokenBatch]
    totals: StepTotals


def step_losses(
    objective: Objective,
    batches: Sequence[TokenBatch],
    *,
    max_completion_length: int,
    known: Mapping[str, Any] | None = None,
    all_sum: AllSum = lambda values: values,
) -> StepResult:
    """Losses of one optimizer step from this rank's micro-batches; backward and `finish_step` are the
    caller's.

    `known` is what a trainer would put into `TokenBatch.step` itself: {"learning_rate": ..., ...}. Every rank
    must bring the same number of micro-batches.
    """
    known = dict(known or {})
    batches = [replace(batch, step=known, index=i) for i, batch in enumerate(batches)]
    batches = [objective.prepare(batch) for batch in batches]
    if objective.observes_step:
        with torch.no_grad():
            step = {**known, **objective.observe_step([_detached(batch) for batch in batches], all_sum)}
        batches = [replace(batch, step=step) for batch in batches]

    masks = [kept_mask(objective, batch) for batch in batches]
    counts = torch.stack([sum_of(mask.sum() for mask in masks), sum_of(_responses(mask) for mask in masks)])
    counts = all_sum(counts)
    totals = StepTotals(counts[0], counts[1], max_completion_length)
    losses = [
        objective.reduce(objective.token_loss(batch), mask, totals)
        for batch, mask in zip(batches, masks, strict=True)
    ]
    return StepResult(losses, masks, batches, totals)


def kept_mask(objective: Objective, batch: TokenBatch) -> Tensor:
    """The loss mask after `keep`. (B, T)."""
    keep = objective.keep(batch)
    return batch.mask if keep is None else batch.mask * keep


def sum_of(values: Any) -> Tensor:
    return torch.stack(list(values)).sum(dim=0)


def _responses(mask: Tensor) -> Tensor:
    return mask.new_tensor(float(mask.size(0)))


def _detached(batch: TokenBatch) -> TokenBatch:
    return replace(batch, logprobs=batch.logprobs.detach())
