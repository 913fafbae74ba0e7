"""PPO. Schulman et al. 2017, https://arxiv.org/abs/1707.06347, as RLHF uses it (Ouyang et al. 2022, 2203.02155).

Against GRPO: the baseline of a token is the value that a critic gives the state before it, and advantages are estimated
over the tokens of a response by GAE (1506.02438), so that one response per prompt can teach.

    R_t   = -beta (log pi_old - log pi_ref)_t  +  [t is the last token] * reward        kl: reward
    A_t   = sum_l (gamma lambda)^l delta_{t+l},   delta_t = R_t + gamma V_{t+1} - V_t,   return_t = A_t + V_t
    L_pg  = -min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A)
    L     = L_pg + value_coef L_vf + ptx_coef * mean over tokens of -log pi(token of a text)     PPO-ptx, 2203.02155
    L_vf  = max((V - return)^2, (V held within value_clip of V_old - return)^2) / 2

Departures: a critic of its own has an optimizer of its own, with its learning rate constant, so `value_coef` weighs its
loss only where the trunk is shared. Whitening is over the whole rollout, all ranks, not over a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.objectives.base import Groups, Objective, StepTotals, TokenBatch
from posttrain.ops.gae import explained_variance, gae, value_loss, whitened
from posttrain.ops.groups import scaled_advantages
from posttrain.ops.ratio import token_ratio
from posttrain.ops.reduce import per_response, per_token
from posttrain.ops.surrogate import clipped_surrogate, dual_clip
from posttrain.settings import RunView


@dataclass(frozen=True)
class PPO(Objective):
    divides_by_tokens: ClassVar[bool] = True
    names_models: ClassVar[tuple[str, ...]] = ("critic_model",)
    names_files: ClassVar[tuple[str, ...]] = ("ptx_data",)
    fixed_on_resume: ClassVar[tuple[str, ...]] = ("baseline", "share_trunk", "ptx_max_length")
    logs: ClassVar[Mapping[str, str]] = {
        "value_loss": "half the squared error of the critic's values, clipped",
        "ptx_loss": "negative log-likelihood of the texts beside, nats per token",
        "explained_variance": "share of the returns' variance that the critic foresees: 1 all, 0 none",
    }
    panels: ClassVar[Mapping[str, tuple[tuple[str, str], ...]]] = {
        "critic: explained variance": (("explained_variance", "explained variance"),),
        "critic: loss": (("value_loss", "value loss"),),
        "critic: values and returns": (("value_mean", "values"), ("return_mean", "returns")),
        "texts beside (ptx): loss [nats per token]": (("ptx_loss", "before the step"),),
    }

    clip_low: Annotated[float, Ge(0), Lt(1)] = 0.2
    """epsilon below 1"""
    clip_high: Annotated[float, Ge(0)] = 0.2
    """epsilon above 1"""
    dual_clip: Annotated[float, Gt(1)] | None = None
    """c of dual-clip PPO (a bound), for negative advantages; off"""
    gamma: Annotated[float, Gt(0), Le(1)] = 1.0
    """discount per token"""
    gae_lambda: Annotated[float, Ge(0), Le(1)] = 0.95
    """lambda of GAE: 1 trusts the rewards alone, 0 the critic's next value"""
    kl: Literal["reward", "loss"] = "reward"
    """where train.beta times the KL to the reference goes: off each token's reward, or into the loss"""
    whiten: bool = True
    """advantages minus their mean over their standard deviation, over the tokens of the rollout"""
    advantage_clip: Annotated[float, Gt(0)] | None = None
    """bound of an advantage's size, after whitening; off"""
    loss_over: Literal["tokens", "responses"] = "tokens"
    """what the policy's loss is a mean over"""
    baseline: Literal["critic", "group"] = "critic"
    """a critic's values, or GRPO's: the mean of the group, over its standard deviation, and no critic"""
    critic_model: str | None = None
    """folder or hub name that the critic starts from, of a reward model or a language model; the policy's start"""
    share_trunk: bool = False
    """the critic is a value head on the policy's own hidden states, which learn from both losses"""
    critic_learning_rate: Annotated[float, Gt(0)] = 1e-5
    """of the critic, or of the value head; constant"""
    critic_warmup: Annotated[int, Ge(0)] = 0
    """optimizer steps at the start in which the critic alone learns and the policy stays as it is"""
    value_clip: Annotated[float, Gt(0)] | None = 0.2
    """how far a value may be pulled from the one at sampling time"""
    value_coef: Annotated[float, Gt(0)] = 0.1
    """weight of the value loss beside the policy's, where they share the trunk"""

    ptx_data: str | None = None
    """file of texts for a language modelling loss beside: a column text, or prompt and completion, or messages"""
    ptx_coef: Annotated[float, Ge(0)] = 0.0
    """weight of that loss, a mean over the texts' tokens; 0: no texts"""
    ptx_batch_size: Annotated[int, Ge(1)] | None = None
    """texts of an optimizer step, over all processes; as many as it has responses"""
    ptx_max_length: Annotated[int, Ge(2)] = 1024
    """tokens at which a text is cut"""

    @property
    def reads_texts(self) -> bool:
        return self.ptx_coef > 0

    @property
    def texts_beside(self) -> int | None:
        return self.ptx_max_length if self.reads_texts else None

    @property
    def kl_in_reward(self) -> bool:
        return self.kl == "reward" and self.baseline == "critic"

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # read from the instance
        return frozenset({"trunk"}) if self.uses_critic and self.share_trunk else frozenset()

    @property
    def uses_critic(self) -> bool:
        return self.baseline == "critic"

    @property
    def refuses_logged(self) -> str | None:
        return "its critic learns what the policy earns from a state" if self.uses_critic else None

    @property
    def learns_from_equal(self) -> str | None:
        return "the baseline is a critic's value, not the group's mean" if self.uses_critic else None

    @property
    def trained_beside(self) -> int:
        return int(self.uses_critic and not self.share_trunk)

    def faults(self, run: RunView) -> Iterator[str]:
        critic = ("critic_model", "share_trunk", "critic_warmup")
        if self.baseline == "group":
            changed = [
                name for name in critic if vars(self)[name] != type(self).__dataclass_fields__[name].default
            ]
            if changed:
                yield f"{run.place}: {', '.join(changed)} of a critic that baseline: group does not have; leave out"
        elif self.share_trunk and self.critic_model is not None:
            yield f"{run.place}: critic_model has no effect with share_trunk, whose trunk is the policy's; leave it out"
        yield from self._text_faults(run)
        if run.train.fp16 and self.uses_critic:
            yield "train: fp16 scales the policy's loss, and the critic's steps are not scaled; take bf16"

    def _text_faults(self, run: RunView) -> Iterator[str]:
        if run.place != "objective" and self.reads_texts:
            yield f"{run.place}: texts beside (ptx_coef) are learned from by ppo and ppo_max alone; leave them out"
        if (self.ptx_data is None) == self.reads_texts:
            yield f"{run.place}: ptx_data and a ptx_coef above 0 go together; set both or neither"
        elif self.reads_texts and (self.ptx_batch_size or 0) % run.processes:
            yield (
                f"{run.place}: ptx_batch_size {self.ptx_batch_size} is no multiple of the {run.processes} processes, "
                "of which each takes its share"
            )

    def row_facts(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        if self.reads_texts:
            size = "as many as responses" if self.ptx_batch_size is None else f"{self.ptx_batch_size:,} texts"
            yield (
                f"beside the policy: {self.ptx_data}, {size} per optimizer step, each cut at {self.ptx_max_length:,} "
                f"tokens; their language modelling loss times {self.ptx_coef:g}"
            )

    def warnings(self, run: RunView) -> Iterator[str]:
        if self.uses_critic and run.train.beta == 0 and self.kl == "reward":
            yield "train: beta 0 lets the policy go anywhere the reward leads; PPO is used with 0.01 to 0.2"
        if (
            self.uses_critic
            and self.critic_warmup == 0
            and self.critic_model is None
            and not self.share_trunk
        ):
            yield (
                f"{run.place}: the critic's values begin at 0 and mislead at first; critic_warmup: 10 lets it learn "
                "alone before"
            )

    # Advantages

    def advantages(self, groups: Groups) -> dict[str, Tensor]:
        """Per token, with the streams "returns", "values" and "judged" (1.0 or 0.0) that the critic learns from. Where
        there are no values, one per response."""
        if self.baseline == "group":
            return {"advantages": self._clipped(scaled_advantages(groups.rewards, "group"))}
        rewards, mask, values = self._per_token(groups)
        found, returns = gae(rewards, values, mask, self.gamma, self.gae_lambda)
        judged = (~groups.rewards.isnan()).to(groups.rewards)
        counted = mask * judged.reshape(-1, 1)
        found = whitened(found, counted) if self.whiten else found * counted
        shape = groups.rewards.shape if groups.values is None else (*groups.rewards.shape, -1)
        return {
            "advantages": (self._clipped(found) * counted).view(shape),
            "returns": (returns * counted).view(shape),
            "values": values.view(shape),
            "judged": judged,
        }

    def _per_token(self, groups: Groups) -> tuple[Tensor, Tensor, Tensor]:
        """Rewards, mask and values (B, T). What no loss is taken of is no action, so the reward stands at the last
        token that has one."""
        final = groups.rewards.reshape(-1).nan_to_num(0.0)
        mask = (
            torch.ones_like(final).unsqueeze(1)
            if groups.mask is None
            else groups.mask.flatten(0, 1).to(final)
        )
        rewards = torch.zeros_like(mask)
        if groups.token_kl is not None and groups.mask is not None and self.kl_in_reward:
            rewards = rewards - groups.beta * groups.token_kl.flatten(0, 1)
        places = torch.arange(mask.size(1), device=mask.device)
        last = torch.where(mask > 0, places, -1).amax(dim=1)
        rewards = (rewards + final.unsqueeze(1) * (places == last.unsqueeze(1))) * mask
        values = torch.zeros_like(mask) if groups.values is None else groups.values.flatten(0, 1).to(final)
        return rewards, mask, values * mask

    def _clipped(self, advantages: Tensor) -> Tensor:
        if self.advantage_clip is None:
            return advantages
        return advantages.clamp(-self.advantage_clip, self.advantage_clip)

    def rollout_metrics(self, groups: Groups) -> dict[str, Tensor]:
        if not self.uses_critic:
            return {}
        rewards, mask, values = self._per_token(groups)
        _, returns = gae(rewards, values, mask, self.gamma, self.gae_lambda)
        mask = mask * ~groups.rewards.isnan().reshape(-1, 1)
        count = mask.sum().clamp(min=1)
        found = {
            "explained_variance": explained_variance(values, returns, mask),
            "value_mean": (values * mask).sum() / count,
            "return_mean": (returns * mask).sum() / count,
        }
        return {name: value for name, value in found.items() if value.isfinite()}

    # Losses

    def token_loss(self, batch: TokenBatch) -> Tensor:  # (B, T)
        ratio = token_ratio(batch.logprobs, batch.old_logprobs)
        losses = clipped_surrogate(ratio, batch.advantages, 1 - self.clip_low, 1 + self.clip_high)
        return losses if self.dual_clip is None else dual_clip(losses, batch.advantages, self.dual_clip)

    def critic_loss(self, values: Tensor, batch: TokenBatch, totals: StepTotals) -> Tensor:
        """This micro-batch's share () of the step's value loss, a mean over tokens. values (B, T), with gradient."""
        returns, old = batch.streams["returns"].to(values), batch.streams["values"].to(values)
        known = batch.mask * batch.streams["judged"]
        return per_token(
            value_loss(values, old, returns, self.value_clip), known.to(values), totals.num_tokens
        )

    def clip_bounds(self, batch: TokenBatch) -> tuple[float, float]:
        return 1 - self.clip_low, 1 + self.clip_high

    def reduce(self, losses: Tensor, mask: Tensor, totals: StepTotals) -> Tensor:  # ()
        if self.loss_over == "responses":
            return per_response(losses, mask, totals.num_responses)
        return per_token(losses, mask, totals.num_tokens)
