"""A policy's optimizer step: each micro-batch is scored, its token losses weighted, reduced and accounted for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from posttrain.objectives.base import Objective, TokenBatch
from posttrain.objectives.step import detached
from posttrain.observe.signal import SignalCounts, account_objective
from posttrain.ops.kl import k3
from posttrain.trainers.forward.padded import loss_mask
from posttrain.trainers.policy.loss_metrics import LossMetrics
from posttrain.trainers.policy.step_in_hand import StepHost, StepInHand
from posttrain.trainers.policy.token_weights import WeightsHost, token_weights

Read = Callable[[Any, Mapping[str, Any]], tuple[TokenBatch, Tensor, Tensor | None]]


class PolicyStepHost(StepHost, WeightsHost, Protocol):
    """What the loss reads of its trainer beyond the step itself: TRL's terms and their coefficients."""

    beta: float
    entropy_coef: float
    router_aux_loss_coef: float
    aux_loss_enabled: bool
    _entropy_bonus_enabled: bool


class PolicyStep(StepInHand):
    """`loss` for each micro-batch, in the order they come.

    read  scores a micro-batch of the rollout buffer: the batch, the entropies (with gradient), the router's
          auxiliary loss or None
    """

    host: PolicyStepHost
    metrics: LossMetrics

    def __init__(
        self, host: PolicyStepHost, objective: Objective, method: str, metrics: LossMetrics, read: Read
    ) -> None:
        super().__init__(host, objective, method, metrics)
        self.read = read

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """This rank's share () of the step's loss times the number of ranks, because the engines average gradients
        over ranks."""
        host, position = self.host, self.position
        accumulation, ranks = host.current_gradient_accumulation_steps, host.accelerator.num_processes
        batch, entropies, aux_loss = self.read(model, inputs)
        if position == 0:
            self._begin(model, batch)
        step = self.current()
        self._note_logprobs(batch, inputs)
        self._rows.append(inputs["row"])
        weights = token_weights(host, batch, inputs, entropies)
        kls: list[Tensor] = []
        share = step.share(batch, lambda one, losses: self._with_terms(one, losses, weights, kls))
        batch, mask, loss = share.batch, share.mask, share.loss * ranks
        policy_loss = loss.detach() * accumulation  # as if the step were one micro-batch
        if host._entropy_bonus_enabled:
            bonus = (entropies * mask).sum() / step.totals.num_tokens.clamp(min=1.0) * ranks
            loss = loss - host.entropy_coef * bonus
        if aux_loss is not None:
            loss = loss + host.router_aux_loss_coef * aux_loss / accumulation
        self.metrics.add(
            self.objective,
            self.method,
            batch,
            keep=share.keep,
            kl=kls[0] if kls else None,
            entropies=entropies.detach(),
            policy_loss=policy_loss,
            aux_loss=aux_loss,
            signal=self.account(batch, inputs, share.keep, weights),
        )
        if position == accumulation - 1:
            self.close()
            if host._entropy_bonus_enabled:
                self.log("entropy_coef", host.entropy_coef)
        return loss

    def _begin(self, model: Any, first: TokenBatch) -> None:
        """Only an objective that observes the step costs a second forward pass, and only where there is more than
        one micro-batch."""
        slices = self.slices()
        masks = [loss_mask(inputs).to(first.logprobs.dtype) for inputs in slices]
        self.open(masks, lambda: [detached(first), *(self.read(model, inputs)[0] for inputs in slices[1:])])

    def _with_terms(
        self, batch: TokenBatch, losses: Tensor, weights: Tensor | None, kls: list[Tensor]
    ) -> Tensor:
        """The objective's token losses, weighted, plus beta times the KL, which is left in `kls`. (B, T)."""
        if weights is not None:
            losses = losses * weights
        if self.host.beta == 0.0 or batch.ref_logprobs is None:
            return losses
        kl = k3(batch.logprobs, batch.ref_logprobs)
        if self.host.args.use_bias_correction_kl:
            kl = kl * self.objective.ratio(batch)
        kls.append(kl)
        return losses + self.host.beta * kl

    def _note_logprobs(self, batch: TokenBatch, inputs: Mapping[str, Any]) -> None:
        """A clipped ratio can hide an infinity from the loss: the log-probs are looked at themselves."""
        for name, logprobs in (
            ("the sampler's log-probs", inputs.get("sampling_per_token_logps")),
            ("the old policy's log-probs", batch.old_logprobs),
            ("the reference's log-probs", batch.ref_logprobs),
            ("the policy's log-probs", batch.logprobs),
        ):
            self.host.step_notes.note(name, logprobs, batch.mask)

    def account(
        self, batch: TokenBatch, inputs: Mapping[str, Any], keep: Tensor | None, weights: Tensor | None
    ) -> SignalCounts:
        """Why each generated token of this micro-batch carries gradient or not."""
        completion = inputs["completion_mask"]
        tool = inputs.get("tool_mask")
        return account_objective(
            self.objective,
            batch,
            generated=inputs["generated_mask"],
            keep=keep,
            unjudged=inputs["unjudged"].unsqueeze(1),
            equal_rewards=inputs["equal_rewards"].unsqueeze(1),
            truncated=(completion.sum(1, keepdim=True) == 0),
            tool=None if tool is None else (tool == 0) & (completion == 1),
            importance=weights,
        )
