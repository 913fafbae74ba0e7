"""What an objective is: the data it reads and the five questions it answers.

Shapes: P prompts, G responses per prompt, B = P*G responses, T response tokens, K reward functions.
An objective is a frozen dataclass of settings. It knows no trainer, no rank and no logger: sums over
ranks come in as `all_sum`, and numbers worth logging go out as return values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

AllSum = Callable[[Tensor], Tensor]
"""Sums a tensor over all ranks; the identity on one process."""


@dataclass(frozen=True)
class Groups:
    """The whole global rollout batch, in prompt groups, before any split into micro-batches.

    rewards               (P, G)     weighted sum of the reward functions; NaN = could not be judged
    rewards_per_function  (P, G, K)  raw values, NaN where that function could not judge
    weights               (K,)       the recipe's reward weights
    answers               P lists of G final answers (None = no answer found), or None when no reward yields them
    """

    rewards: Tensor
    rewards_per_function: Tensor
    weights: Tensor
    answers: Sequence[Sequence[str | None]] | None = None


@dataclass(frozen=True)
class TokenBatch:
    """One micro-batch as the loss sees it.

    logprobs      (B, T)  log pi_theta of the sampled tokens, with gradient in the training forward
    old_logprobs  (B, T)  the same at sampling time, no gradient
    mask          (B, T)  1.0 where a token takes part in the loss (completion, not a tool's output, not a
                          masked truncated response)
    advantages    (B, 1) or (B, T)
    ref_logprobs  (B, T)  frozen reference, or None
    entropy       (B, T)  policy entropy in nats, no gradient, or None
    streams       further per-response (B, 1) tensors that `advantages` returned under other names
    forward       further per-token outputs of the forward pass, as asked for by `Objective.needs`
    step          what `observe_step` returned for the optimizer step this micro-batch belongs to
    """

    logprobs: Tensor
    old_logprobs: Tensor
    mask: Tensor
    advantages: Tensor
    ref_logprobs: Tensor | None = None
    entropy: Tensor | None = None
    streams: Mapping[str, Tensor] = field(default_factory=dict)
    forward: Mapping[str, Tensor] = field(default_factory=dict)
    step: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StepTotals:
    """Counts over the whole optimizer step: all micro-batches, all ranks.

    num_tokens             ()   loss-mask tokens (after `keep`)
    num_responses          ()   responses, those without any loss token included
    max_completion_length  the rollout's limit, a plain number (Dr.GRPO's constant)
    """

    num_tokens: Tensor
    num_responses: Tensor
    max_completion_length: int


@dataclass(frozen=True)
class Objective:
    """Base of every method that learns from rewards. Subclasses override what differs from the defaults."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """Forward outputs beyond log-probs and entropy: any of "hidden" (B, T, H), "logits" (B, T, V)."""
    needs_answers: ClassVar[bool] = False
    """Whether `advantages` reads `Groups.answers`; a recipe whose rewards yield none is refused."""
    observes_step: ClassVar[bool] = False
    """Whether `observe_step` must see every micro-batch of the optimizer step before its first backward."""

    def advantages(self, groups: Groups) -> dict[str, Tensor]:
        """Streams of shape (P, G), "advantages" among them. Unjudged (NaN) responses get 0."""
        raise NotImplementedError  # every method defines its own

    def observe_step(self, batches: Sequence[TokenBatch], all_sum: AllSum) -> dict[str, Any]:
        """Statistics over ALL micro-batches and ranks of one optimizer step; lands in `TokenBatch.step`."""
        return {}

    def ratio(self, batch: TokenBatch) -> Tensor:
        """The importance ratio the surrogate uses: (B, T), or (B, 1) when it is one per response."""
        return torch.exp(batch.logprobs - batch.old_logprobs)

    def token_loss(self, batch: TokenBatch) -> Tensor:
        """The loss a token, before masking and reduction. (B, T), or (B, 1) to be broadcast."""
        raise NotImplementedError  # every method defines its own

    def clip_bounds(self, batch: TokenBatch) -> tuple[float | Tensor, float | Tensor] | None:
        """Absolute bounds the ratio is clipped to in this batch, for metrics; None where nothing clips."""
        return None

    def keep(self, batch: TokenBatch) -> Tensor | None:
        """(B, T) bool: tokens that count at all. What is dropped leaves numerator and denominator. None = all."""
        return None

    def reduce(self, losses: Tensor, mask: Tensor, totals: StepTotals) -> Tensor:
        """This micro-batch's share () of the step's loss: shares add up over micro-batches and ranks."""
        raise NotImplementedError  # every method names its divisor

    def finish_step(self, batches: Sequence[TokenBatch], all_sum: AllSum) -> dict[str, Any]:
        """Called once an optimizer step, after its last backward; updates running statistics, if any."""
        return {}

    def metrics(self, batch: TokenBatch) -> dict[str, Tensor]:
        """Scalars () worth logging for this micro-batch; the trainer averages and names them `METHOD/key`."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Running statistics to checkpoint; empty for most methods."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, but the checkpoint holds {sorted(state)}")
