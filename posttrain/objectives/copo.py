"""COPO, consistency-aware policy optimisation. 2025, https://arxiv.org/abs/2508.04138

Against GRPO: beside the advantage inside the group there is one between prompts (eq. 6), so that groups with
equal rewards still teach; a weight from the entropy of the group's final answers (eq. 9, 10) blends the two
losses (eq. 11).
Departures: none by default. "Incorrect" in the gate is a reward at or below `incorrect_at`, because the
released r = 0 never holds with rewards of -1/1 or with a format reward; for 0/1 rewards the two are the same.
The gate falls on responses, as released; `selective` names the other readings.
Answers of the data (`rollout.logged`) are not the policy's: entropy, gate and the means between prompts leave them
out, and they are learned from by the local advantage alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from math import log2
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt
from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.objectives.base import Groups, Objective, StepTotals, TokenBatch
from posttrain.objectives.logged_rows import sampled_rewards
from posttrain.ops.groups import degenerate_groups, group_zscore, nan_std
from posttrain.ops.ratio import token_ratio
from posttrain.ops.reduce import per_response
from posttrain.ops.surrogate import clipped_surrogate, dual_clip
from posttrain.settings import RunView

Selective = Literal["response", "group", "degenerate", "none"]

STD_EPSILON = 1e-6
"""Added to both standard deviations, as released (GRPO's is 1e-4)."""


def answer_entropy(answers: Sequence[Sequence[Hashable | None]]) -> Tensor:
    """Entropy in bits of the final answers of each group (eq. 9). P lists of G answers -> (P,).

    Answers are compared by equality, so they must come normalised (1, 1.0 and True are one answer). None, no
    answer found, is one shared symbol: unparsed completions agree with each other. An empty group has entropy 0.

    Raises TypeError for a text in place of a list of answers, whose letters would be counted.
    """
    for place, group in enumerate(answers):
        if isinstance(group, str):
            raise TypeError(
                f"answer_entropy: group {place} is the text {group!r}; it must be a list of answers"
            )
    return torch.tensor([_entropy_bits(Counter(group)) for group in answers])


def global_advantages(rewards: Tensor) -> Tensor:
    """Mean reward of each group, standardised over the prompts of the batch (eq. 6). (P, G) -> (P,).

    Sample standard deviation (divisor P - 1) plus 1e-6. 0 for a single prompt, for equal means, and for a
    group in which nothing was judged (NaN).
    """
    # float64: means that differ by float32 rounding alone would be a few percent of the divisor's 1e-6 apart
    means = rewards.double().nanmean(dim=1)
    advantages = (means - means.nanmean()) / (nan_std(means) + STD_EPSILON)
    return torch.where(means.isnan(), 0.0, advantages).to(_floating(rewards))


def local_weight(
    entropy: Tensor,
    rewards: Tensor,
    *,
    gamma: float,
    rho: float,
    selective: Selective,
    incorrect_at: float = 0.0,
) -> Tensor:
    """Weight of the local loss, sigmoid(gamma (H - rho)) times a gate (eq. 10). (P,), (P, G) -> (P, G).

    selective, where the gate is 0 and the global advantage stands alone:
    "response"    on every incorrect response, in mixed groups too (released full method)
    "group"       on groups without a correct response
    "degenerate"  on groups with equal rewards, which have no local advantage
    "none"        nowhere
    A response is incorrect where its reward is at most `incorrect_at`, or NaN (unjudged).
    """
    kind = _floating(rewards)  # rewards of 0 and 1 may come as integers, which the entropy must not become
    soft = torch.sigmoid(gamma * (entropy.to(rewards.device, kind) - rho)).unsqueeze(1).expand_as(rewards)
    correct = rewards > incorrect_at
    gates = {
        "response": correct,
        "group": correct.any(dim=1, keepdim=True),
        "degenerate": ~degenerate_groups(rewards).unsqueeze(1),
        "none": torch.ones_like(correct),
    }
    if selective not in gates:
        raise ValueError(f"COPO: selective is {selective!r}; it must be one of {', '.join(gates)}")
    return soft * gates[selective].to(kind)


def _floating(rewards: Tensor) -> torch.dtype:
    return rewards.dtype if rewards.is_floating_point() else torch.get_default_dtype()


def _entropy_bits(counts: Counter[Hashable | None]) -> float:
    total = counts.total()
    # + 0.0: the sum over a single answer is -0.0
    return -sum(n / total * log2(n / total) for n in counts.values()) + 0.0


@dataclass(frozen=True)
class COPO(Objective):
    needs_answers: ClassVar[bool] = True
    logs: ClassVar[Mapping[str, str]] = {
        "global_loss_share": "of the summed |weighted token losses|, from the comparison between prompts",
        "local_weight_mean": "weight of the comparison inside the group, mean over responses",
        "local_weight_min": "the same, the least",
        "local_weight_max": "the same, the most",
    }

    gamma: Annotated[float, Gt(0)] = 20.0
    """gamma: how sharply entropy decides between the losses"""
    rho: Annotated[float, Ge(0)] = 1.5
    """rho, in bits: entropy at which both weigh the same; at most log2 G"""
    selective: Literal["response", "group", "degenerate", "none"] = "response"
    """see local_weight"""
    incorrect_at: float = 0.0
    """a response is incorrect where its reward is at most this"""
    entropy_coefficient: bool = False
    """global reward times 1 - lambda H (reward_coef_flg), lambda = (1-1/G)/log2 G"""
    clip_low: Annotated[float, Ge(0), Lt(1)] = 0.2
    """epsilon below 1, both losses"""
    clip_high: Annotated[float, Ge(0)] = 0.2
    """epsilon above 1, both losses"""
    dual_clip: Annotated[float, Gt(1)] | None = 3.0
    """c of dual-clip PPO, a bound; for negative advantages"""

    @property
    def learns_from_equal(self) -> str:
        return "its global advantage compares the groups' means with each other"

    def faults(self, run: RunView) -> Iterator[str]:
        if run.prompts == 1:
            yield (
                f"rollout: method '{run.method}' compares prompts with each other, and one rollout has one; raise "
                "train.per_device_train_batch_size or steps_per_generation, or lower rollout.group_size"
            )

    def warnings(self, run: RunView) -> Iterator[str]:
        size = run.rollout.group_size
        if self.rho > log2(size):
            yield (
                f"{run.place}: rho {self.rho:g} is more than the {log2(size):.3g} bits that {size} answers can "
                "differ by: the weight stays below one half in every group"
            )

    def advantages(self, groups: Groups) -> dict[str, Tensor]:
        rewards, sampled = groups.rewards, sampled_rewards(groups)
        entropy = self._entropy(groups)
        coefficient = self._coefficient(entropy, rewards.size(1)) if self.entropy_coefficient else 1.0
        between = global_advantages(sampled * coefficient).unsqueeze(1).expand_as(rewards)
        # float64: where the global loss weighs little, 1 - weight has few digits in float32
        weight = local_weight(
            entropy.double(),
            sampled.double(),
            gamma=self.gamma,
            rho=self.rho,
            selective=self.selective,
            incorrect_at=self.incorrect_at,
        )
        if groups.logged is not None:  # compared inside its group alone
            weight = torch.where(groups.logged, 1.0, weight)
        return {
            "advantages": group_zscore(rewards.double(), STD_EPSILON).to(_floating(rewards)),
            "global_advantages": torch.where(rewards.isnan(), 0.0, between),
            "local_weight": weight.to(_floating(rewards)),
            "global_weight": (1 - weight).to(_floating(rewards)),
        }

    def rollout_metrics(self, groups: Groups) -> dict[str, Tensor]:
        """answer_entropy (bits, mean over prompts), local_weight_{mean,min,max}, all_wrong and all_right
        (shares of groups), global_advantage_abs (mean of |B|)."""
        streams = self.advantages(groups)
        weight = streams["local_weight"]
        rewards = sampled_rewards(groups)
        judged = ~rewards.isnan()
        correct = rewards > self.incorrect_at
        known = judged.any(dim=1)
        return {
            "answer_entropy": self._entropy(groups).mean(),
            "local_weight_mean": weight.mean(),
            "local_weight_min": weight.min(),
            "local_weight_max": weight.max(),
            "all_wrong": (known & ~correct.any(dim=1)).to(weight).mean(),
            "all_right": (known & (correct | ~judged).all(dim=1)).to(weight).mean(),
            "global_advantage_abs": streams["global_advantages"].abs().mean(),
        }

    def token_loss(self, batch: TokenBatch) -> Tensor:  # (B, T)
        local, between = self._losses(batch)
        return batch.streams["local_weight"] * local + batch.streams["global_weight"] * between

    def effective_advantages(self, batch: TokenBatch) -> Tensor:
        streams = batch.streams
        return (
            streams["local_weight"] * batch.advantages
            + streams["global_weight"] * streams["global_advantages"]
        )

    def clip_bounds(self, batch: TokenBatch) -> tuple[float, float]:
        return 1 - self.clip_low, 1 + self.clip_high

    def reduce(self, losses: Tensor, mask: Tensor, totals: StepTotals) -> Tensor:  # ()
        return per_response(losses, mask, totals.num_responses)

    def metrics(self, batch: TokenBatch) -> dict[str, Tensor]:
        """global_loss_share: of the summed |weighted token losses|, the part of the global term."""
        local, between = (losses.detach() for losses in self._losses(batch))
        of_local = (batch.streams["local_weight"] * local.abs() * batch.mask).sum()
        of_global = (batch.streams["global_weight"] * between.abs() * batch.mask).sum()
        return {
            "global_loss_share": of_global
            / (of_local + of_global).clamp(min=torch.finfo(of_local.dtype).tiny)
        }

    def _losses(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """The clipped losses of the local and of the global advantage, from the same ratio. (B, T) each."""
        ratio = token_ratio(batch.logprobs, batch.old_logprobs)
        local, between = (
            clipped_surrogate(ratio, advantages, 1 - self.clip_low, 1 + self.clip_high)
            for advantages in (batch.advantages, batch.streams["global_advantages"])
        )
        if self.dual_clip is None:
            return local, between
        between = dual_clip(between, batch.streams["global_advantages"], self.dual_clip)
        return dual_clip(local, batch.advantages, self.dual_clip), between

    def _entropy(self, groups: Groups) -> Tensor:
        if groups.rewards.size(1) < 2:
            raise ValueError(
                "COPO: one response per prompt has no local advantage; use a group size of at least 2"
            )
        if groups.answers is None:
            raise ValueError(
                "COPO: no reward function gives final answers; use one that does (math_answer), or give yours an "
                "answer hook"
            )
        if [len(group) for group in groups.answers] != [groups.rewards.size(1)] * groups.rewards.size(0):
            raise ValueError(
                "COPO: answers must be one list per prompt, with one answer (or None) per response"
            )
        if groups.logged is None:
            return answer_entropy(groups.answers).to(groups.rewards)
        sampled = [
            [answer for answer, given in zip(answers, flags, strict=True) if not given]
            for answers, flags in zip(groups.answers, groups.logged.tolist(), strict=True)
        ]
        return answer_entropy(sampled).to(groups.rewards)

    @staticmethod
    def _coefficient(entropy: Tensor, group_size: int) -> Tensor:
        """1 where all answers agree, 1/G where all differ. (P,) -> (P, 1)."""
        slope = (1 - 1 / group_size) / log2(group_size)
        return (1 - slope * entropy).unsqueeze(1)
