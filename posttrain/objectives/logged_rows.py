"""Answers that the policy did not sample, within a batch of those it did: what a method's questions see of them.

`TokenBatch.logged` says which rows they are. Without `TokenBatch.shaping` they are tokens of the method like any other,
with old log-probs of their own. With it, LUFFY's shaped loss stands in place of the method's (ops/shaping.py), and the
method sees of them what it makes advantages of and what it divides by, no more: its statistics, its bounds and its
choice of tokens are about ratios, and these tokens have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from posttrain.objectives.base import Groups, Objective, TokenBatch
from posttrain.ops.shaping import shaped_surrogate


def shaped_rows(batch: TokenBatch) -> Tensor | None:
    """(B, 1) bool: the rows whose loss is the shaped one; None where there is none."""
    return None if batch.shaping is None else batch.logged


def token_losses(objective: Objective, batch: TokenBatch) -> Tensor:
    """The method's loss per token, the shaped one for shaped rows. (B, T), or (B, 1) to be broadcast."""
    losses = objective.token_loss(batch)
    rows = shaped_rows(batch)
    if rows is None or batch.shaping is None:
        return losses
    shaped = shaped_surrogate(batch.logprobs, objective.effective_advantages(batch), batch.shaping)
    return torch.where(rows, shaped, losses)


def seen_by_method(batch: TokenBatch) -> TokenBatch:
    """The batch as the method's statistics see it: without the tokens of shaped rows."""
    rows = shaped_rows(batch)
    return batch if rows is None else replace(batch, mask=batch.mask * ~rows)


def kept_tokens(objective: Objective, batch: TokenBatch) -> Tensor | None:
    """`Objective.keep`, which rejects no token of a shaped row. (B, T) bool, or None: all."""
    keep, rows = objective.keep(batch), shaped_rows(batch)
    return keep if keep is None or rows is None else keep | rows


def samples_only(batch: TokenBatch) -> TokenBatch:
    """The batch without the tokens of logged answers, for numbers that are about what the policy sampled."""
    return batch if batch.logged is None else replace(batch, mask=batch.mask * ~batch.logged)


def sampled_rewards(groups: Groups) -> Tensor:
    """The rewards, NaN where an answer was not sampled. (P, G)."""
    rewards = groups.rewards
    return rewards if groups.logged is None else rewards.masked_fill(groups.logged, torch.nan)


def logged_in_words(batches: Sequence[TokenBatch]) -> list[str]:
    """How many rows of a step are logged answers, and what loss they have: a sentence, or none."""
    flags = [batch.logged for batch in batches if batch.logged is not None]
    count = sum(int(rows.sum()) for rows in flags)
    if not count:
        return []
    gammas = [batch.shaping for batch in batches if batch.shaping is not None]
    loss = f"the shaped loss, gamma {float(gammas[0].flatten()[0]):g}" if gammas else "the objective's loss"
    total = sum(batch.mask.size(0) for batch in batches)
    return [f"{count} of {total} responses are logged answers, which were not sampled; they have {loss}"]
