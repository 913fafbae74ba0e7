"""One optimizer step of one rank: observe, keep, count; for each micro-batch loss and reduce; finish.

A trainer meets its micro-batches one at a time and drives an `OptimizerStep` between forward and backward; replay and
the tests, which have them all at hand, drive the same object through `step_losses`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from posttrain.objectives.base import AllSum, Objective, StepTotals, TokenBatch
from posttrain.objectives.logged_rows import kept_tokens, seen_by_method, token_losses

Adjust = Callable[[TokenBatch, Tensor], Tensor]
"""A micro-batch and its token losses (B, T) or (B, 1) to those that are reduced: weights, a KL term."""


@dataclass(frozen=True)
class Share:
    """What one micro-batch gets from the step it belongs to.

    loss   () its share: over all micro-batches and ranks they add up to the step's loss
    batch  the micro-batch as the loss saw it, prepared, with `step` and `index`
    keep   (B, T) bool, which tokens count at all; None = all
    mask   (B, T) the loss mask after `keep`
    """

    loss: Tensor
    batch: TokenBatch
    keep: Tensor | None
    mask: Tensor


class OptimizerStep:
    """Opened with what all its micro-batches hold together, asked for each one's loss, finished after the last.

    objective  the method; its running statistics are read when the step is opened and move when it is finished
    masks      (B, T) each: the loss masks of this rank's micro-batches, before `keep`
    batches    gives the micro-batches themselves, all of them; only called for an objective that observes the step,
               without gradient
    known      what else the trainer knows of the step, for `TokenBatch.step`: {"learning_rate": ..., ...}
    all_sum    sums over ranks. Every rank must bring the same number of micro-batches
    """

    def __init__(
        self,
        objective: Objective,
        masks: Sequence[Tensor],
        batches: Callable[[], Sequence[TokenBatch]],
        *,
        max_completion_length: int,
        known: Mapping[str, Any] | None = None,
        all_sum: AllSum = lambda values: values,
    ) -> None:
        self.objective = objective
        self.step: dict[str, Any] = dict(known or {})
        self.seen: list[TokenBatch] = []  # without gradient, as far as the loss has seen them
        self._all_sum = all_sum
        if objective.observes_step:
            masks = self._observed(batches)
        counts = torch.stack(
            [
                torch.stack([mask.sum() for mask in masks]).sum(),
                masks[0].new_tensor(sum(mask.size(0) for mask in masks)),
            ]
        )
        counts = all_sum(counts)
        self.totals = StepTotals(counts[0], counts[1], max_completion_length)

    def _observed(self, batches: Callable[[], Sequence[TokenBatch]]) -> list[Tensor]:
        """Lets the objective see the whole step, and returns the masks of what it keeps of it."""
        objective, known = self.objective, self.step
        with torch.no_grad():
            seen = [replace(detached(batch), step=known, index=i) for i, batch in enumerate(batches())]
            seen = [objective.prepare(batch) for batch in seen]
            observed = objective.observe_step([seen_by_method(batch) for batch in seen], self._all_sum)
            self.step = {**known, **observed}
            return [kept_mask(objective, replace(batch, step=self.step)) for batch in seen]

    def share(self, batch: TokenBatch, adjust: Adjust | None = None) -> Share:
        """The loss of the next micro-batch, with gradient; backward is the caller's."""
        objective = self.objective
        batch = objective.prepare(replace(batch, step=self.step, index=len(self.seen)))
        self.seen.append(detached(batch))
        keep = kept_tokens(objective, batch)
        mask = batch.mask if keep is None else batch.mask * keep
        losses = token_losses(objective, batch)
        if adjust is not None:
            losses = adjust(batch, losses)
        return Share(objective.reduce(losses.expand_as(mask), mask, self.totals), batch, keep, mask)

    def finish(self) -> dict[str, Any]:
        """After the last backward: running statistics move; numbers worth logging once a step."""
        return self.objective.finish_step([seen_by_method(batch) for batch in self.seen], self._all_sum)


@dataclass(frozen=True)
class StepResult:
    """What one rank gets from one optimizer step.

    losses   one share () per micro-batch; over all micro-batches and ranks they add up to the step's loss
    masks    (B, T) per micro-batch: the loss mask after `keep`
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
    """A step whose micro-batches are all at hand; backward and `finish_step` are the caller's."""
    step = OptimizerStep(
        objective,
        [batch.mask for batch in batches],
        lambda: batches,
        max_completion_length=max_completion_length,
        known=known,
        all_sum=all_sum,
    )
    shares = [step.share(batch) for batch in batches]
    return StepResult(
        [share.loss for share in shares],
        [share.mask for share in shares],
        [share.batch for share in shares],
        step.totals,
    )


def kept_mask(objective: Objective, batch: TokenBatch) -> Tensor:
    """The loss mask after `keep`. (B, T)."""
    keep = kept_tokens(objective, batch)
    return batch.mask if keep is None else batch.mask * keep


def detached(batch: TokenBatch) -> TokenBatch:
    return replace(batch, logprobs=batch.logprobs.detach())
