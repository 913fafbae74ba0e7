"""On-policy distillation: GKD on its own samples, by the reverse KL. Agarwal et al. 2023, https://arxiv.org/abs/2306.13649

Against GRPO: no reward is needed. The policy (the student) samples, a larger model (the teacher) is asked how likely it
finds each sampled token, and that token's advantage is by how much it finds it likelier than the student does:

    A_t = log pi_T(y_t | x, y_<t) - log pi_old(y_t | x, y_<t)   (+ reward_coef (R - mean of its group))

Its expectation over y_t is the gradient of -KL(pi || pi_T) at the state the student has come to; what a token does to
the states after it is left out (discount zero), as in GKD, where no gradient flows through the sampling. MiniLLM
(Gu et al. 2023, https://arxiv.org/abs/2306.08543) keeps that part, as a return over the tokens still to come.
Departures: GKD sums the divergence over the vocabulary; here it is estimated from the sampled token, so that any scorer
of sampled tokens serves. PPO's clip holds on samples that are not fresh; on fresh ones nothing is clipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt
from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.objectives.base import Groups, Objective, StepTotals, TokenBatch
from posttrain.ops.groups import group_centered
from posttrain.ops.ratio import token_ratio
from posttrain.ops.reduce import per_token
from posttrain.ops.surrogate import clipped_surrogate
from posttrain.settings import RunView, Start


def distillation_advantages(
    gap: Tensor, mask: Tensor, rewards: Tensor, *, reward_coef: float = 0.0, gap_clip: float | None = None
) -> Tensor:
    """The advantage of each token, 0 where `mask` is. (P, G, T), (P, G, T), (P, G) -> (P, G, T).

    gap      log pi_teacher - log pi_old of the sampled tokens, in nats; held within +-gap_clip
    rewards  NaN = could not be judged: the teacher alone speaks about these
    """
    advantages = gap if gap_clip is None else gap.clamp(-gap_clip, gap_clip)
    if reward_coef:
        advantages = advantages + reward_coef * group_centered(rewards).unsqueeze(2).to(gap)
    return torch.where(mask > 0, advantages, 0.0)


@dataclass(frozen=True)
class OPD(Objective):
    is_objective: ClassVar[bool] = False  # no method can be built on it: it brings a model of its own
    ratio_per_token: ClassVar[bool] = False
    divides_by_tokens: ClassVar[bool] = True
    uses_teacher: ClassVar[bool] = True
    logs: ClassVar[Mapping[str, str]] = {
        "reverse_kl": "estimate of KL(policy || teacher) on the policy's own samples, nats per token",
    }
    panels: ClassVar[Mapping[str, tuple[tuple[str, str], ...]]] = {
        "reverse KL to the teacher (nats per token)": (("reverse_kl", "policy's samples"),),
    }

    teacher_model: str | None = None
    """folder or hub name of the teacher, which must have the policy's tokenizer; with teacher_server its name there"""
    teacher_server: str | None = None
    """http://host:port of a vLLM server that runs the teacher, in place of this process"""
    teacher_batch_size: Annotated[int, Ge(1)] = 8
    """responses of one call to the server"""
    teacher_timeout_s: Annotated[float, Gt(0)] = 120.0
    """seconds that one call to the server may take, its retries included"""
    teacher_retries: Annotated[int, Ge(0)] = 4
    """further tries of such a call"""
    teacher_api_key_env: str = "VLLM_API_KEY"
    """environment variable with the server's key"""
    teacher_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """of the teacher's weights; auto: as they are saved"""
    reward_coef: Annotated[float, Ge(0)] = 0.0
    """weight of the rewards, minus their group's mean, beside the teacher; 0: no rewards are needed"""
    gap_clip: Annotated[float, Gt(0)] | None = None
    """bound in nats of what the teacher says about one token; off"""
    clip_low: Annotated[float, Ge(0), Lt(1)] = 0.2
    """epsilon below 1"""
    clip_high: Annotated[float, Ge(0)] = 0.2
    """epsilon above 1"""

    @property
    def names_models(self) -> tuple[str, ...]:  # type: ignore[override]  # read from the instance
        return (
            ("teacher_model",) if self.teacher_server is None else ()
        )  # on a server it is a name of its own

    @property
    def same_tokenizer(self) -> tuple[str, ...]:  # type: ignore[override]  # as above; a server is asked at the start
        return self.names_models

    @property
    def needs_rewards(self) -> bool:
        return self.reward_coef > 0

    @property
    def frozen_models(self) -> Mapping[str, str]:
        here = self.teacher_model if self.teacher_server is None else None
        return {} if here is None else {here: self.teacher_dtype}

    @property
    def refuses_logged(self) -> str:
        return "what the teacher says estimates a divergence on tokens that the policy sampled"

    @property
    def learns_from_equal(self) -> str | None:
        return "the teacher speaks about each of their tokens"

    @classmethod
    def start(cls, *, model: str, rewards: tuple[float, float] | None) -> Mapping[str, Start]:
        note = (
            "teacher_model: name your teacher; as it stands the model would teach itself, and nothing moves"
        )
        return {"teacher_model": Start(model, note)}

    def faults(self, run: RunView) -> Iterator[str]:
        if self.teacher_server is not None:
            yield from self._server_faults(run)
        elif self.teacher_model is None:
            yield (
                f"{run.place}: method '{run.method}' has no teacher: write teacher_model: FOLDER, or teacher_server: "
                "http://host:port"
            )

    def _server_faults(self, run: RunView) -> Iterator[str]:
        if not str(self.teacher_server).startswith(("http://", "https://")):
            yield f"{run.place}.teacher_server {self.teacher_server!r} is no address; write it as http://host:port"
        if run.rollout is not None and run.rollout.temperature != 1:
            yield (
                f"rollout: temperature {run.rollout.temperature:g}, and a teacher's server gives log-probs at 1; "
                "sample at 1, or hold the teacher here (teacher_model without teacher_server)"
            )

    def warnings(self, run: RunView) -> Iterator[str]:
        if run.rewards and not self.reward_coef:
            yield f"{run.place}.reward_coef is 0: the rewards are measured, and nothing is learned from them"
        if self.teacher_model is not None and self.teacher_model == run.model.path:
            yield f"{run.place}.teacher_model is the model itself: it agrees with itself, so nothing would be learned"

    def advantages(self, groups: Groups) -> dict[str, Tensor]:
        gap, mask = self._asked(groups)
        found = distillation_advantages(
            gap, mask, groups.rewards, reward_coef=self.reward_coef, gap_clip=self.gap_clip
        )
        return {"advantages": found}

    def rollout_metrics(self, groups: Groups) -> dict[str, Tensor]:
        gap, mask = self._asked(groups)
        tokens = mask.sum().clamp(min=1)
        found = {"reverse_kl": -(gap * mask).sum() / tokens}
        if self.gap_clip is not None:
            found["gap_clipped"] = ((gap.abs() > self.gap_clip) * mask).sum() / tokens
        return found

    def token_loss(self, batch: TokenBatch) -> Tensor:  # (B, T)
        ratio = token_ratio(batch.logprobs, batch.old_logprobs)
        return clipped_surrogate(ratio, batch.advantages, 1 - self.clip_low, 1 + self.clip_high)

    def clip_bounds(self, batch: TokenBatch) -> tuple[float, float]:
        return 1 - self.clip_low, 1 + self.clip_high

    def reduce(self, losses: Tensor, mask: Tensor, totals: StepTotals) -> Tensor:  # ()
        return per_token(losses, mask, totals.num_tokens)

    def _asked(self, groups: Groups) -> tuple[Tensor, Tensor]:
        if groups.teacher_gap is None:
            raise ValueError(
                "OPD: no teacher was asked; OPDTrainer brings one, a plain PolicyTrainer has none"
            )
        mask = groups.mask
        return groups.teacher_gap, torch.ones_like(groups.teacher_gap) if mask is None else mask
