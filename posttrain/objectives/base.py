"""What an objective is: the data it reads and the five questions it answers.

Shapes: P prompts, G responses per prompt, B = P*G responses, T response tokens, K reward functions.
An objective is a frozen dataclass of settings. It knows no trainer, no rank and no logger: sums over
ranks come in as `all_sum`, and numbers worth logging go out as return values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pydantic.dataclasses
from torch import Tensor

from posttrain.ops.ratio import token_ratio
from posttrain.settings import Settings

AllSum = Callable[[Tensor], Tensor]
"""Sums a tensor over all ranks; the identity on one process."""


@dataclass(frozen=True)
class Groups:
    """The whole global rollout batch, in prompt groups, before any split into micro-batches.

    rewards               (P, G)     weighted sum of the reward functions; NaN = could not be judged
    rewards_per_function  (P, G, K)  raw values, NaN where that function could not judge
    weights               (K,)       the recipe's reward weights
    answers               P lists of G final answers (None = none found), or None when no reward yields them
    lengths               (P, G)     tokens of each response, or None where they are not known
    written               (P, G)     those of them that the policy wrote; None where it wrote all, that is without tools
    token_kl              (P, G, T)  log pi_old - log pi_ref of each sampled token in nats, 0 where no loss is taken;
                                     None but for an objective with `kl_in_reward` and a train.beta above 0
    beta                             train.beta beside `token_kl`, else 0
    values                (P, G, T)  the critic's value of the state before each token, at sampling time; None but for
                                     an objective that `uses_critic`
    teacher_gap           (P, G, T)  log pi_teacher - log pi_old of each sampled token in nats, 0 where no loss is
                                     taken; None but for an objective that `uses_teacher`
    mask                  (P, G, T)  1.0 where a token takes part in the loss; None where `values` and `teacher_gap`
                                     are, but beside `token_kl` for an objective that `pairs_answers` and for responses
                                     that hold tokens of tools
    logged                (P, G)     bool: answers of the data, not sampled by the policy; None where it sampled all
    """

    rewards: Tensor
    rewards_per_function: Tensor
    weights: Tensor
    answers: Sequence[Sequence[str | None]] | None = None
    lengths: Tensor | None = None
    token_kl: Tensor | None = None
    beta: float = 0.0
    values: Tensor | None = None
    mask: Tensor | None = None
    teacher_gap: Tensor | None = None
    written: Tensor | None = None
    logged: Tensor | None = None


@dataclass(frozen=True)
class TokenBatch:
    """One micro-batch as the loss sees it.

    logprobs      (B, T)  log pi_theta of the sampled tokens, with gradient in the training forward
    old_logprobs  (B, T)  the same at sampling time, no gradient
    mask          (B, T)  1.0 where a token takes part in the loss (completion, not a tool's output, not a
                          masked truncated response). Before `keep`: only `reduce` is given the mask after it
    advantages    (B, 1) or (B, T)
    ref_logprobs  (B, T)  frozen reference, or None
    entropy       (B, T)  policy entropy in nats, no gradient, or None
    streams       further (B, 1) or (B, T) tensors that `advantages` returned under other names
    forward       further per-token outputs of the forward pass, as asked for by `Objective.needs`
    step          what the trainer knows of the optimizer step ("learning_rate": of the LM head's parameter
                  group, "peak_learning_rate": the highest of the schedule) and what `observe_step` returned
                  for it
    index         this micro-batch's place among its rank's micro-batches of the optimizer step, from 0
    logged        (B, 1) bool: answers of the data, which the policy did not sample; None where it sampled all
    shaping       (B, 1) gamma of the loss that those rows have instead of the method's (logged_rows.py); None: its own
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
    index: int | None = None
    logged: Tensor | None = None
    shaping: Tensor | None = None


@dataclass(frozen=True)
class StepTotals:
    """Counts over the whole optimizer step: all micro-batches, all ranks.

    num_tokens             ()   loss-mask tokens; after `keep` where the objective `divides_by_tokens`
    num_responses          ()   responses, those without any loss token included
    max_completion_length  the rollout's limit, a plain number (Dr.GRPO's constant)
    """

    num_tokens: Tensor
    num_responses: Tensor
    max_completion_length: int


@pydantic.dataclasses.dataclass(frozen=True)
class Objective(Settings):
    """Base of every method that learns from rewards. Subclasses override what differs from the defaults.

    The class variables are read from the instance: a method that wraps another (CAPO) answers for it.
    posttrain/objectives/step.py runs one optimizer step without a trainer, and so says who is called when.
    """

    is_objective: ClassVar[bool] = True
    ratio_per_token: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset()
    """Forward outputs beyond log-probs and entropy, without gradient and in `TokenBatch.forward`:
    "hidden"      forward["hidden"] (B, T, H), the LM head's input at the position that predicts the token
    "trunk"       the same with gradient, for a value head on the policy; no loss on tokens sees it
    "candidates"  forward["actions"] (B, T), the sampled ids; forward["candidate_ids"] and
                  forward["candidate_logits"] (B, T, K), the K = `num_candidates` most likely ids there, the
                  sampled one always among them, with logits after temperature
                  (`ops.logprobs.top_candidates`)"""
    num_candidates: ClassVar[int] = 0
    """How many candidate ids per token the method wants, where it needs "candidates"."""
    observes_step: ClassVar[bool] = False
    """Whether every micro-batch of the optimizer step must be seen, by `observe_step` or to count the kept
    tokens, before the first backward. Without it no second forward pass is called for, even where `keep`
    selects."""
    observes_only_ratio: ClassVar[bool] = False
    """Whether `observe_step` and `keep` read nothing of a forward pass but the importance ratio, which is 1 as long as
    the policy is the one that sampled: then they cost no second forward pass."""
    uses_teacher: ClassVar[bool] = False
    """Whether `advantages` reads `Groups.teacher_gap`: what another model says about the sampled tokens."""
    pairs_answers: ClassVar[bool] = False
    """Whether the responses of a group are learned from against each other: an optimizer step must hold groups whole,
    and `Groups.mask` says which of them have tokens to learn from."""
    divides_by_tokens: ClassVar[bool] = False
    """Whether `reduce` reads `StepTotals.num_tokens`."""

    @property
    def kl_in_reward(self) -> bool:
        """Whether the method itself pulls to the reference, by `Groups.token_kl`, which `advantages` reads: off the
        rewards, or in a loss on pairs. The trainer adds no KL penalty to the loss then."""
        return False

    @property
    def uses_critic(self) -> bool:
        """Whether `advantages` reads `Groups.values`, and a critic learns from the streams "returns" and "values" by
        `critic_loss`."""
        return False

    @property
    def reads_texts(self) -> bool:
        """Whether the policy also learns from texts that it did not sample, by a language modelling loss."""
        return False

    def entropy_loss(self, entropies: Tensor) -> Tensor | None:
        """What the policy pays for each token's entropy in nats, a mean over the step's tokens. (B, T) -> (B, T)."""
        return None

    def observe_rewards(self, groups: Groups) -> Groups:
        """Called once with each rollout, before `advantages`: running statistics of the rewards move here, and what it
        returns is what the other questions are asked about, and what a record holds."""
        return groups

    def critic_loss(self, values: Tensor, batch: TokenBatch, totals: StepTotals) -> Tensor:
        """This micro-batch's share () of the step's value loss. values (B, T), with gradient."""
        raise NotImplementedError  # an objective that `uses_critic` defines it

    def advantages(self, groups: Groups) -> dict[str, Tensor]:
        """Streams, "advantages" among them: (P, G), one number per response, or (P, G, T), one per token, zero
        behind a response's end (`Groups.lengths`). Rewards give unjudged (NaN) responses 0."""
        raise NotImplementedError  # every method defines its own

    def rollout_metrics(self, groups: Groups) -> dict[str, Tensor]:
        """Scalars () worth logging for this rollout batch (fitted statistics, degenerate groups)."""
        return {}

    def prepare(self, batch: TokenBatch) -> TokenBatch:
        """Adds to `batch.forward` what several of the methods below read, so that it is computed once.
        Optional to call: they compute what they miss."""
        return batch

    def observe_step(self, batches: Sequence[TokenBatch], all_sum: AllSum) -> dict[str, Any]:
        """Statistics over ALL micro-batches and ranks of one optimizer step; lands in `TokenBatch.step`."""
        return {}

    def ratio(self, batch: TokenBatch) -> Tensor:
        """The importance ratio the surrogate uses: (B, T), or (B, 1) when it is one per response."""
        return token_ratio(batch.logprobs, batch.old_logprobs)

    def effective_advantages(self, batch: TokenBatch) -> Tensor:
        """The advantage a token's gradient carries at ratio one: (B, 1) or (B, T). Differs from
        `batch.advantages` where a method blends several (COPO)."""
        return batch.advantages

    def left_out(self, batch: TokenBatch) -> Tensor | None:
        """(B, 1) bool, for the signal account: responses that the method picked nothing from, though the rewards of
        their group differ; None = it learns from all."""
        return None

    def token_loss(self, batch: TokenBatch) -> Tensor:
        """The loss per token, before masking and reduction. (B, T), or (B, 1) to be broadcast."""
        raise NotImplementedError  # every method defines its own

    def clip_bounds(self, batch: TokenBatch) -> tuple[float | Tensor, float | Tensor] | None:
        """Absolute bounds the ratio is clipped to in this batch, for metrics; None where nothing clips."""
        return None

    def keep(self, batch: TokenBatch) -> Tensor | None:
        """(B, T) bool: tokens that count at all; what is dropped leaves numerator and denominator.
        None = all."""
        return None

    def reduce(self, losses: Tensor, mask: Tensor, totals: StepTotals) -> Tensor:
        """This micro-batch's share () of the step's loss: shares add up over micro-batches and ranks."""
        raise NotImplementedError  # every method names its divisor

    def finish_step(self, batches: Sequence[TokenBatch], all_sum: AllSum) -> dict[str, Any]:
        """Called once an optimizer step, after its last backward, with all its micro-batches; updates running
        statistics, if any. What it returns is logged once a step."""
        return {}

    def metrics(self, batch: TokenBatch) -> dict[str, Tensor]:
        """Scalars () worth logging for this micro-batch; the trainer averages and names them `METHOD/key`."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Running statistics to checkpoint; empty for most methods."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            raise ValueError(
                f"{type(self).__name__} keeps no state, but the checkpoint holds {sorted(state)}"
            )
