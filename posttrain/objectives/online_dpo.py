"""Online DPO. Guo et al. 2024, https://arxiv.org/abs/2402.04792; PARL's term: Chakraborty et al. 2023, 2308.02585.

Against DPO: the pairs are the policy's own. It samples a group for each prompt, the rewards say which of two answers is
better, and DPO's loss is taken on them. Against GRPO: of a group's rewards only their order counts, an answer is one
action, and the pull to the reference is inside the loss. With d = beta (h_w - h_l), h = log pi(y|x) - log pi_ref(y|x),
and p the probability that the first of the pair is preferred (1: the better one is, for sure),

    F = p log sigma(d) + (1 - p) log sigma(-d),     loss = -mean F

The pairs come from the policy itself, so its gradient has a second part, which ordinary RLHF drops: PARL's, in the
single-level form of SAIL (Ding et al. 2024, 2406.15567). `parl_coef` adds it, E[(F - b)(grad log pi(y_w) + grad log
pi(y_l))] to the ascent; b is a baseline. Since F <= 0, without one it lowers whatever was sampled.
Departures: a tie teaches nothing (TRL's OnlineDPOTrainer takes its first answer for the better one). On stale samples
PARL's term is weighted by the pair's importance ratio, up to `parl_ratio_max`; DPO's is not weighted, as in DPO.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import pydantic.dataclasses
import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn.functional import logsigmoid

from posttrain.objectives.base import AllSum, Groups, Objective, StepTotals, TokenBatch
from posttrain.ops.ratio import LOG_RATIO_LIMIT
from posttrain.ops.reduce import per_response
from posttrain.settings import RunView

Baseline = Literal["others", "indifferent", "none"]

INDIFFERENT = -log(2.0)
"""F of a policy that tells the two answers apart as little as its reference does: log 1/2."""


class DrawnPairs(NamedTuple):
    """The pairs of a rollout; every tensor (P, G).

    sign  1 the better answer of a pair, -1 the worse one, 0 in no pair with a winner
    pair  the number of the response's pair in the rollout, 0 where it is in none
    tie   whether it is in a pair of equal rewards
    """

    sign: Tensor
    pair: Tensor
    tie: Tensor


def pairs_per_group(size: int, rule: Literal["best_worst", "drawn"]) -> int:
    """How many pairs a group of `size` gives when all its answers can be compared."""
    return 1 if rule == "best_worst" else size // 2


def draw_pairs(rewards: Tensor, usable: Tensor, rule: Literal["best_worst", "drawn"]) -> DrawnPairs:
    """Who is compared with whom. rewards (P, G), NaN = unjudged; usable (P, G) bool = has tokens to learn from.

    best_worst  the first of the best and the first of the worst of a group
    drawn       neighbours among the answers that can be compared, in the order sampled: two of them are two independent
                draws from the policy, whatever their rewards; of an odd number the last is left over
    """
    usable = usable & ~rewards.isnan()
    best, worst = (
        torch.where(usable, rewards * way, -torch.inf).argmax(dim=1, keepdim=True) for way in (1.0, -1.0)
    )
    size, slots = rewards.size(1), pairs_per_group(rewards.size(1), rule)
    if rule == "best_worst":
        places = torch.arange(size, device=rewards.device)
        inside = ((places == best) | (places == worst)) & usable
        slot = torch.zeros_like(rewards, dtype=torch.long)
        tie = (rewards.gather(1, best) == rewards.gather(1, worst)) & (usable.sum(dim=1, keepdim=True) > 1)
        inside, tie = (
            inside & (best != worst),
            tie.expand_as(usable) & usable,
        )  # all of them could have stood in it
        other = torch.where(places == best, rewards.gather(1, worst), rewards.gather(1, best))
    else:
        order = torch.argsort(
            (~usable).to(torch.int8), dim=1, stable=True
        )  # those that can be compared first
        rank = torch.argsort(order, dim=1)
        partner = order.gather(1, (rank ^ 1).clamp(max=size - 1))
        inside = usable & usable.gather(1, partner) & ((rank ^ 1) < size)
        slot = rank // 2
        other = rewards.gather(1, partner)
        tie = inside & (rewards == other)
    sign = torch.where(inside & ~tie, torch.sign(rewards - other), 0.0)
    first = torch.arange(rewards.size(0), device=rewards.device).unsqueeze(1) * slots
    return DrawnPairs(sign, torch.where(sign != 0, first + slot, 0), tie)


def pair_value(difference: Tensor, preference: Tensor) -> Tensor:
    """F = p log sigma(d) + (1 - p) log sigma(-d), at most 0. (N,), (N,) -> (N,)."""
    return preference * logsigmoid(difference) + (1 - preference) * logsigmoid(-difference)


def pair_slope(difference: Tensor, preference: Tensor) -> Tensor:
    """dF/dd = p - sigma(d). (N,), (N,) -> (N,)."""
    return preference - torch.sigmoid(difference)


def baselines(values: Tensor, present: Tensor, kind: Baseline) -> Tensor:
    """b of each pair. values (N,), present (N,) bool: the pairs of the step -> (N,).

    others       the mean of F over the other pairs of the step, which do not depend on this one's answers; where there
                 is no other, as `indifferent`
    indifferent  log 1/2, a constant. A pair of one and the same answer, which is a tie and left out, has just this F
    none         0
    """
    if kind != "others":
        return torch.full_like(values, INDIFFERENT if kind == "indifferent" else 0.0)
    known = torch.where(present, values, 0.0)
    others = present.sum() - 1
    mean = (known.sum() - known) / others.clamp(min=1)
    return torch.where(others > 0, mean, INDIFFERENT)


@dataclass(frozen=True)
class PairStep:
    """The pairs of one optimizer step, over all ranks; every tensor (N,), N the pairs of the whole rollout.

    present     whether the pair is in this step
    difference  d = beta (h_w - h_l) under the policy of the step
    value       F
    slope       beta dF/dd: what d's gradient, grad log pi(y_w) - grad log pi(y_l), is multiplied by
    score       parl_coef times the ratio times (F - b): what grad log pi(y_w) + grad log pi(y_l) is multiplied by
    """

    present: Tensor
    difference: Tensor
    value: Tensor
    slope: Tensor
    score: Tensor


@pydantic.dataclasses.dataclass(frozen=True)
class OnlineDPO(Objective):
    """Online DPO; beta is the trainer's (`train.beta`) and must be above 0."""

    ratio_per_token: ClassVar[bool] = False
    pairs_answers: ClassVar[bool] = True
    observes_step: ClassVar[bool] = True
    observes_only_ratio: ClassVar[bool] = True
    logs: ClassVar[Mapping[str, str]] = {
        "paired": "of the pairs that a rollout has room for, those with a winner",
        "ties": "of equal rewards, which teach nothing",
        "unpaired": "for which two answers that could be judged and learned from were missing",
        "accuracy": "of a step's pairs, those whose better answer the policy has moved towards more than the worse one",
        "parl_size": "mean size of PARL's term beside DPO's, of each answer's log-prob",
    }
    panels: ClassVar[Mapping[str, tuple[tuple[str, str], ...]]] = {
        "pairs": (("paired", "with a winner"), ("ties", "ties"), ("unpaired", "not to be compared")),
        "pairs: implicit rewards": (("accuracy", "accuracy"), ("margin", "margin")),
    }

    pairs: Literal["best_worst", "drawn"] = "best_worst"
    """of a group: its best and its worst answer, or neighbours in the order sampled"""
    preference_scale: Annotated[float, Gt(0)] | None = None
    """the better answer is preferred with probability sigma(reward gap / this); off: for sure"""
    parl_coef: Annotated[float, Ge(0)] = 0.0
    """weight of PARL's term; 0: off, 1: the published gradient; above train.beta it cost accuracy here"""
    parl_baseline: Literal["others", "indifferent", "none"] = "others"
    """b of PARL's term: mean F of the step's other pairs, log 1/2, or 0"""
    parl_ratio_max: Annotated[float, Ge(1)] = 2.0
    """most that a pair's importance ratio weighs in PARL's term, on samples that are not fresh"""

    @property
    def refuses_logged(self) -> str:
        return "its pairs, and PARL's term, are of answers that the policy sampled"

    @property
    def kl_in_reward(self) -> bool:
        return True  # the pull to the reference is in the pairs' loss, which reads `Groups.token_kl`

    # What it asks of the rest of a recipe

    def faults(self, run: RunView) -> Iterator[str]:
        if run.train.beta == 0:
            yield f"train: beta 0 leaves method '{run.method}' without its reference; set beta above 0 (0.1 is usual)"
        yield from run.refused_train(
            {
                "off_policy_mask_threshold": "it would leave one answer of a pair alone",
                "top_entropy_quantile": "a pair is two whole answers, not some of their tokens",
            }
        )
        yield from self._split_groups(run)
        changed = [
            name
            for name in ("parl_baseline", "parl_ratio_max")
            if vars(self)[name] != type(self).__dataclass_fields__[name].default
        ]
        if changed and self.parl_coef == 0:
            yield f"{run.place}: {', '.join(changed)} of a term that parl_coef: 0 switches off; leave out, or set it"

    def _split_groups(self, run: RunView) -> Iterator[str]:
        """Both answers of a pair have to be in one optimizer step."""
        batch, size = run.train.per_device_train_batch_size, run.rollout.group_size
        accumulated, window = run.train.gradient_accumulation_steps, run.train.window
        of_step = batch * accumulated
        if window == accumulated or batch % size == 0 or (window % accumulated == 0 and of_step % size == 0):
            return
        yield (
            f"train: method '{run.method}' needs both answers of a pair in one optimizer step, and {of_step} responses "
            f"a process do not divide into groups of {size}; make per_device_train_batch_size a multiple of {size}, or "
            "leave steps_per_generation out"
        )

    def warnings(self, run: RunView) -> Iterator[str]:
        size = run.rollout.group_size
        if self.pairs == "drawn" and size % 2:
            yield f"{run.place}: pairs: drawn leaves one answer of each group of {size} over; set group_size {size + 1}"
        if self.parl_coef and self.pairs == "best_worst" and size > 2:
            yield (
                f"{run.place}: parl_coef is for pairs as the policy draws them, and the best and the worst of {size} "
                "are not; take pairs: drawn"
            )
        if self.parl_coef > run.train.beta > 0:
            yield (
                f"{run.place}: parl_coef {self.parl_coef:g} outweighs DPO's part, whose factor at an answer is at most "
                f"train.beta, {run.train.beta:g}; runs here lost accuracy above beta"
            )
        if self.parl_coef and self.parl_baseline == "none":
            yield f"{run.place}: parl_baseline: none lowers the log-prob of every sampled answer, F being below 0"

    # A rollout

    def advantages(self, groups: Groups) -> dict[str, Tensor]:
        """Of each answer: 1 the better one of its pair, -1 the worse one, 0 in none; its pair, and what the pair's loss
        is made of. ValueError without a reference's log-probs."""
        if groups.token_kl is None or groups.beta <= 0:
            raise ValueError(
                "OnlineDPO: no log-probs of a reference, which the pairs' loss is taken against; set beta above 0"
            )
        rewards, drawn = groups.rewards, self._drawn(groups)
        slots = pairs_per_group(rewards.size(1), self.pairs)

        def constant(value: float) -> Tensor:
            return torch.full_like(rewards, value)

        return {
            "advantages": drawn.sign,
            "pair": drawn.pair.to(rewards),
            "pair_reward": rewards.nan_to_num(0.0),
            "log_ratio": groups.token_kl.double().sum(dim=2).to(rewards),
            # constants of the rollout, so that a micro-batch knows them
            "beta": constant(groups.beta),
            "pairs": constant(float(rewards.size(0) * slots)),
            "weight": constant(rewards.size(1) / max(slots, 1)),
        }

    def rollout_metrics(self, groups: Groups) -> dict[str, Tensor]:
        """paired, ties and unpaired: shares of the pairs that the rollout has room for; reward_gap: mean over the pairs
        with a winner, where there are any."""
        drawn, rewards = self._drawn(groups), groups.rewards
        room = rewards.size(0) * pairs_per_group(rewards.size(1), self.pairs)
        paired = (drawn.sign > 0).sum() / room
        tied = drawn.tie.any(dim=1) if self.pairs == "best_worst" else drawn.tie.sum(dim=1) // 2
        ties = tied.sum() / room
        found = {"paired": paired, "ties": ties, "unpaired": 1 - paired - ties}
        if bool(paired > 0):
            gaps = (drawn.sign * rewards.nan_to_num(0.0)).sum()
            found["reward_gap"] = gaps / (drawn.sign > 0).sum()
        return found

    def _drawn(self, groups: Groups) -> DrawnPairs:
        rewards = groups.rewards
        usable = torch.ones_like(rewards, dtype=torch.bool)
        if groups.mask is not None:
            usable = (groups.mask.to(rewards.device) > 0).any(dim=2)
        return draw_pairs(rewards, usable, self.pairs)

    # An optimizer step

    def observe_step(self, batches: Sequence[TokenBatch], all_sum: AllSum) -> dict[str, Any]:
        """The pairs of the step, of which two ranks or two micro-batches may hold one answer each. ValueError where
        another optimizer step holds one of the two."""
        streams = batches[0].streams
        beta, count = streams["beta"].flatten()[0], int(streams["pairs"].flatten()[0])
        sums = batches[0].logprobs.new_zeros(max(count, 1), 4, dtype=torch.float64)
        for batch in batches:
            sign = batch.advantages.squeeze(1).double()
            moved = ((batch.logprobs.detach() - batch.old_logprobs) * batch.mask).double().sum(dim=1)
            log_ratio = batch.streams["log_ratio"].squeeze(1).double() + moved
            reward = batch.streams["pair_reward"].squeeze(1).double()
            inside = sign != 0
            each = torch.stack([torch.ones_like(sign), sign * log_ratio, moved, sign * reward], dim=1)
            sums.index_add_(0, batch.streams["pair"].squeeze(1).long()[inside], each[inside])
        members, difference, moved, gap = all_sum(sums).unbind(dim=1)
        if bool((members == 1).any()):
            raise ValueError(
                "OnlineDPO: an optimizer step holds one answer of a pair without the other; make "
                "per_device_train_batch_size a multiple of num_generations, or leave steps_per_generation out"
            )
        return {"pairs": self._step(members > 0, beta.double() * difference, moved, gap, beta.double())}

    def _step(
        self, present: Tensor, difference: Tensor, moved: Tensor, gap: Tensor, beta: Tensor
    ) -> PairStep:
        scale = self.preference_scale
        preference = torch.ones_like(gap) if scale is None else torch.sigmoid(gap / scale)
        value = pair_value(difference, preference)
        ratio = moved.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp().clamp(max=self.parl_ratio_max)
        base = baselines(value, present, self.parl_baseline)
        score = self.parl_coef * ratio * (value - base)
        return PairStep(present, difference, value, beta * pair_slope(difference, preference), score)

    def _of(self, batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Of each answer in a pair (B, 1): whether it is in one, what its log-prob's gradient is multiplied by, F."""
        step = batch.step.get("pairs")
        if step is None:  # the batch stands for a whole step
            step = self.observe_step([batch], lambda values: values)["pairs"]
        pair = batch.streams["pair"].long()
        push = batch.advantages.sign() * step.slope[pair] + step.score[pair]
        inside = batch.advantages != 0
        kind = batch.logprobs.dtype
        return (
            inside,
            torch.where(inside, push, 0.0).to(kind),
            torch.where(inside, step.value[pair], 0.0).to(kind),
        )

    def ratio(self, batch: TokenBatch) -> Tensor:  # (B, 1)
        log_ratio = ((batch.logprobs - batch.old_logprobs) * batch.mask).sum(dim=1, keepdim=True)
        return torch.exp(log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))

    def effective_advantages(self, batch: TokenBatch) -> Tensor:  # (B, 1)
        return self._of(batch)[1]

    def left_out(self, batch: TokenBatch) -> Tensor:  # (B, 1)
        return batch.advantages == 0

    def token_loss(self, batch: TokenBatch) -> Tensor:  # (B, 1)
        """Half the loss of the answer's pair, and the whole gradient that the pair's loss and PARL's term have in the
        answer's own log-prob. The term has no value, so the loss is DPO's."""
        inside, push, value = self._of(batch)
        total = (batch.logprobs * batch.mask).sum(dim=1, keepdim=True)
        loss = -value / 2 - push * (total - total.detach())
        return torch.where(inside, loss, 0.0) * batch.streams["weight"]

    def reduce(self, losses: Tensor, mask: Tensor, totals: StepTotals) -> Tensor:  # ()
        # one loss per answer, the same at each of its tokens. Divided by the pairs that the responses have room for,
        # not by those with a winner: a pair weighs the same in whatever step it is, as a response does in GRPO
        return per_response(losses, mask, totals.num_responses)

    def finish_step(self, batches: Sequence[TokenBatch], all_sum: AllSum) -> dict[str, Any]:
        """Of the step's pairs, over all ranks, before its update: accuracy, margin (mean d), pair_loss (mean -F), and
        with PARL's term its size."""
        step: PairStep = batches[0].step["pairs"]
        count = step.present.sum()
        if not bool(count > 0):
            return {}

        def mean(values: Tensor) -> Tensor:
            return torch.where(step.present, values, 0.0).sum() / count

        found = {
            "accuracy": mean((step.difference > 0).double()),
            "margin": mean(step.difference),
            "pair_loss": -mean(step.value),
        }
        return found | ({"parl_size": mean(step.score.abs())} if self.parl_coef else {})
