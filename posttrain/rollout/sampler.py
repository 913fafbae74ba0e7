"""The next token of each row by its own sampling options, and its log-prob under what it was drawn from.

R rows, V vocabulary. One uniform number per row decides, by the inverse of the cumulative distribution: found in two
steps, first the block of the vocabulary, then the token inside it, so that the vocabulary is passed over a few times
and never sorted or accumulated in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from posttrain.rollout.base import Sampling

BLOCK = 256
"""Tokens of a block. The square root of the vocabulary does least work; from 64 to 1024 it costs nearly the same."""


class Sampler:
    """The sampling options of all rows as columns, so that one call shapes the whole batch."""

    def __init__(self, sampling: Sequence[Sampling], device: torch.device) -> None:
        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        self.temperature = column([one.temperature for one in sampling])
        self.penalty = column([one.repetition_penalty for one in sampling])
        self.min_p = column([one.min_p for one in sampling])
        self.top_p = column([one.top_p for one in sampling])
        self.top_k = torch.tensor([one.top_k for one in sampling], device=device)
        self.greedy = self.temperature == 0
        self.any_greedy = any(one.temperature == 0 for one in sampling)
        self.plain = all(one.temperature == 1 for one in sampling)
        self.cuts_rare = any(one.min_p > 0 for one in sampling)
        # of rows that all name a top_k, only so many tokens need an order
        self.most_kept = max((one.top_k for one in sampling), default=0)
        self.keeps_few = all(one.top_k > 0 for one in sampling)
        self.ranks = any(one.top_p < 1 or one.top_k > 0 for one in sampling)

    @property
    def shapes(self) -> bool:
        """Whether some row draws from a part of the distribution only."""
        return self.cuts_rare or self.ranks

    def choose(
        self, logits: Tensor, index: Tensor, draws: Tensor, seen: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The next token of each row and its log-prob under the distribution it was drawn from. (R,), (R,).

        logits  (R, V)
        index   (R,) which of the sampler's rows these are
        draws   (R,) float64 in [0, 1)
        seen    (all rows, V) bool: tokens a repetition penalty is for; None without one
        """
        logits = logits.float()
        if seen is not None:
            penalty = self.penalty[index].unsqueeze(1)
            punished = torch.where(logits > 0, logits / penalty, logits * penalty)
            logits = torch.where(seen[index], punished, logits)
        if not self.plain:
            temperature = self.temperature[index]
            logits = logits / torch.where(self.greedy[index], 1.0, temperature).unsqueeze(1)
        if self.shapes:
            shaped = self.truncate(logits, index)
            logits = (
                torch.where(self.greedy[index].unsqueeze(1), logits, shaped) if self.any_greedy else shaped
            )
        highest = logits.amax(dim=1, keepdim=True)
        weights = torch.exp(logits - highest)
        chosen, total = draw(weights, draws)
        if self.any_greedy:
            chosen = torch.where(self.greedy[index], logits.argmax(dim=1), chosen)
        logprobs = logits.gather(1, chosen.unsqueeze(1)) - highest
        return chosen, logprobs.squeeze(1) - total.log().float()

    def truncate(self, logits: Tensor, index: Tensor) -> Tensor:
        """min-p, then top-k, then top-p: vLLM's order. Dropped tokens get -inf. (R, V) -> (R, V)."""
        if self.cuts_rare:
            floor = self.min_p[index].unsqueeze(1)
            # p < floor * max p, in logits
            lowest = logits.amax(-1, keepdim=True) + floor.log()
            logits = logits.masked_fill(logits < lowest, -torch.inf)
        if not self.ranks:
            return logits
        count = min(self.most_kept, logits.size(1)) if self.keeps_few else logits.size(1)
        ordered, order = logits.topk(count, dim=1) if self.keeps_few else logits.sort(-1, descending=True)
        rank = torch.arange(count, device=logits.device).unsqueeze(0)
        top_k = self.top_k[index].unsqueeze(1)
        ordered = ordered.masked_fill((top_k > 0) & (rank >= top_k), -torch.inf)
        before = ordered.softmax(-1).cumsum(-1).roll(1, -1)  # mass of the likelier tokens
        before[:, 0] = 0.0
        ordered = ordered.masked_fill(before >= self.top_p[index].unsqueeze(1), -torch.inf)
        return torch.full_like(logits, -torch.inf).scatter_(1, order, ordered)


def draw(weights: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """The token at which the cumulative weight passes `draws` times the total, and the total.

    weights (R, V) not negative, draws (R,) float64 in [0, 1) -> (R,), (R,) float64. A token of weight 0 is never
    chosen. Sums run in float64: a large vocabulary's tail would drown in float32.
    """
    rows, vocabulary = weights.shape
    whole = vocabulary // BLOCK
    sums = weights[:, : whole * BLOCK].view(rows, whole, BLOCK).sum(dim=2, dtype=torch.float64)
    if whole * BLOCK < vocabulary:
        rest = weights[:, whole * BLOCK :].sum(dim=1, keepdim=True, dtype=torch.float64)
        sums = torch.cat([sums, rest], dim=1)
    cumulative = sums.cumsum(dim=1)
    total = cumulative[:, -1]
    target = (draws * total).unsqueeze(1)
    block = _passed(cumulative, sums, target)
    before = cumulative.gather(1, block) - sums.gather(1, block)
    tokens = block * BLOCK + torch.arange(BLOCK, device=weights.device)
    inside = weights.gather(1, tokens.clamp(max=vocabulary - 1)).double() * (tokens < vocabulary)
    place = _passed(inside.cumsum(dim=1), inside, target - before)
    return (block * BLOCK + place).squeeze(1), total


def _passed(cumulative: Tensor, weights: Tensor, target: Tensor) -> Tensor:
    """The first place whose cumulative weight is above the target, (R, 1); where rounding has left none, the last
    one of any weight."""
    last = weights.size(1) - 1 - (weights.flip(1) > 0).int().argmax(dim=1, keepdim=True)
    return torch.minimum(torch.searchsorted(cumulative, target, right=True), last)


def uniform_draws(sampling: Sequence[Sampling]) -> Tensor:
    """(R, T) in [0, 1), float64: all that the rows will need, each from its own seed."""
    longest = max(one.max_new_tokens for one in sampling)
    draws = torch.empty(len(sampling), longest, dtype=torch.float64)
    for row, one in enumerate(sampling):
        generator = None if one.seed is None else torch.Generator().manual_seed(one.seed)
        draws[row] = torch.rand(longest, dtype=torch.float64, generator=generator)
    return draws
