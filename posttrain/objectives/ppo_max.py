"""PPO-max. Zheng et al. 2023 (Secrets of RLHF, part I), https://arxiv.org/abs/2307.04964, section 5.4

Against PPO: rewards are normalised by mean and standard deviation of all rewards so far, then clipped (eq. 18); the KL
to the start is a part of each token's reward (eq. 19); values are clipped; the critic starts from the reward model and
is trained alone first, and a language modelling loss on other text stands beside (PPO-ptx). No whitening of advantages
and no pull of the entropy, c_e |H - H*|, which the paper studied and does not recommend: both are off.
Departures: the authors' scripts normalise otherwise than their paper (see the two recipes, and the card). The rollout
is the paper's buffer: 128 responses, trained on once in steps of 32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Gt
from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.objectives.base import Groups
from posttrain.objectives.ppo import PPO
from posttrain.settings import RunView


@plain_dataclass
class RunningMoments:
    """Mean and spread of all numbers seen so far, brought together batch by batch (Chan et al. 1979)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared distances from the mean

    def update(self, values: Tensor) -> None:
        """Takes in a batch, in float64; NaN is left out."""
        values = values.reshape(-1).double()
        values = values[~values.isnan()]
        new = float(values.numel())
        if not new:
            return
        mean = values.mean().item()
        distance, total = mean - self.mean, self.count + new
        self.squares += (values - mean).square().sum().item() + distance**2 * self.count * new / total
        self.mean += distance * new / total
        self.count = total

    @property
    def std(self) -> float:
        """Standard deviation with divisor n - 1; NaN below two values, where there is none."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else math.nan


@dataclass(frozen=True)
class PPOMax(PPO):
    logs: ClassVar[Mapping[str, str]] = {
        **PPO.logs,
        "reward_clipped": "share of the normalised rewards beyond reward_clip",
    }
    panels: ClassVar[Mapping[str, tuple[tuple[str, str], ...]]] = {
        **PPO.panels,
        "rewards so far": (("reward_mean_so_far", "mean"), ("reward_std_so_far", "standard deviation")),
    }

    whiten: bool = False
    """advantages minus their mean over their standard deviation, over the tokens of the rollout"""
    reward_norm: Literal["none", "scale", "norm"] = "norm"
    """norm: minus the mean, over the standard deviation of all rewards so far; scale: over it alone, as the scripts"""
    reward_clip: Annotated[float, Gt(0)] | None = 0.8
    """delta: bound of a reward's size after that; the paper studies 0.3 and 0.8"""
    target_entropy: Annotated[float, Gt(0)] | None = None
    """H* in nats per token, which the policy's entropy is pulled to; the paper studies 30 and 35"""
    target_entropy_coef: Annotated[float, Gt(0)] | None = None
    """c_e: weight of |H - H*|, a mean over the step's tokens; off"""

    @cached_property
    def moments(self) -> RunningMoments:
        return RunningMoments()

    def faults(self, run: RunView) -> Iterator[str]:
        yield from super().faults(run)
        if (self.target_entropy is None) != (self.target_entropy_coef is None):
            yield f"{run.place}: target_entropy and target_entropy_coef go together; set both or neither"

    def entropy_loss(self, entropies: Tensor) -> Tensor | None:
        if self.target_entropy is None or self.target_entropy_coef is None:
            return None
        return self.target_entropy_coef * (entropies - self.target_entropy).abs()

    def warnings(self, run: RunView) -> Iterator[str]:
        yield from super().warnings(run)
        if self.whiten and self.value_clip is not None and self.uses_critic:
            yield f"{run.place}: the paper found whitening and value_clip to conflict (figure 14); keep one"

    def observe_rewards(self, groups: Groups) -> Groups:
        """The rewards normalised and clipped; the statistics take this rollout in first, as the authors' code does."""
        self.moments.update(groups.rewards)
        rewards = groups.rewards
        std = self.moments.std
        if self.reward_norm != "none":
            if not std > 0:  # one reward, or all equal: nothing to tell apart yet
                rewards = torch.where(rewards.isnan(), rewards, 0.0)
            else:
                centre = self.moments.mean if self.reward_norm == "norm" else 0.0
                rewards = (rewards - centre) / std
        if self.reward_clip is not None:
            rewards = rewards.clamp(-self.reward_clip, self.reward_clip)
        return replace(groups, rewards=rewards)

    def rollout_metrics(self, groups: Groups) -> dict[str, Tensor]:
        told = {"reward_mean_so_far": self.moments.mean, "reward_std_so_far": self.moments.std}
        found = {name: torch.tensor(value) for name, value in told.items() if math.isfinite(value)}
        if self.reward_clip is not None:
            judged = ~groups.rewards.isnan()
            at_bound = (groups.rewards.abs() >= self.reward_clip) & judged
            found["reward_clipped"] = at_bound.sum() / judged.sum().clamp(min=1)
        return {**super().rollout_metrics(groups), **found}

    def state_dict(self) -> dict[str, Any]:
        return {"rewards": vars(self.moments).copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if set(state) != {"rewards"} or set(state["rewards"]) != set(vars(RunningMoments())):
            raise ValueError(
                f"PPOMax: the checkpoint holds {sorted(state)}, these settings want the rewards' running moments; "
                "resume with the method it was made with"
            )
        vars(self.moments).update(state["rewards"])
