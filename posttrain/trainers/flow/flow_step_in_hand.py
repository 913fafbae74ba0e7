"""An image method's optimizer step: one forward and backward for each denoising step that is trained on.

    for each micro-batch, for each of its steps: velocity, the step's Gaussian, the ratio, the loss, backward

All rows of a pass stand at the same step. As in masked diffusion, all backwards but the last run here with gradients
held back, and transformers' training step does the one that ends the micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from posttrain.objectives.base import TokenBatch
from posttrain.objectives.flow_base import FlowObjective
from posttrain.objectives.step import Share
from posttrain.observe.signal import SignalCounts, account_objective
from posttrain.ops.flow_step import StepGaussian, step_divergence
from posttrain.rollout.flow.flow_sampler import FlowSampler, Velocity
from posttrain.trainers.flow.flow_metrics import FlowMetrics
from posttrain.trainers.policy.step_in_hand import StepHost, StepInHand
from posttrain.trainers.seam.held_back import backward_of_a_part, gradients_held_back

CONDITION = "condition: "
"""Before a condition's name in the rollout buffer."""


class FlowStepHost(StepHost, Protocol):
    """What the loss reads of its trainer beyond the step itself."""

    sampler: FlowSampler

    def training_velocity(self, model: Any, inputs: Mapping[str, Any]) -> Velocity: ...

    def reference_velocity(self, inputs: Mapping[str, Any]) -> Velocity | None: ...


class FlowStep(StepInHand):
    """`loss` for each micro-batch, in the order they come."""

    host: FlowStepHost
    objective: FlowObjective
    metrics: FlowMetrics

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Runs all backwards but the last, and returns the last one's loss plus the others' values: this rank's share
        of the step's loss, times the ranks."""
        host, position = self.host, self.position
        trained = self.objective.trained_steps(self.host.sampler.sampling.denoising_steps)
        if position == 0:
            masks = [part["mask"] for part in self.slices() for _ in range(trained)]
            self.open(masks, lambda: [])
        value: Tensor | None = None
        loss = torch.zeros(())
        for j in range(trained):
            last = j == trained - 1
            with nullcontext() if last else gradients_held_back(host.accelerator, model):
                loss = self._pass_loss(model, inputs, j, first=position == 0 and j == 0)
                if not last:
                    backward_of_a_part(host.accelerator, loss)
                    value = loss.detach() if value is None else value + loss.detach()
        if position == host.current_gradient_accumulation_steps - 1:
            self.close()
        return loss if value is None else loss + value

    def _pass_loss(self, model: Any, inputs: Mapping[str, Any], j: int, *, first: bool) -> Tensor:
        """Of the micro-batch at denoising step j; times the ranks, because engines average gradients over them."""
        step = self._gaussian(self.host.training_velocity(model, inputs), inputs, j)
        batch = self._token_batch(step, inputs, j)
        kl = self._kl(step, inputs, j)
        share = self.current().share(
            batch, lambda _, losses: losses if kl is None else losses + self._beta * kl
        )
        for name, values in (("the policy's steps", step.mean), ("the log ratio", batch.logprobs)):
            self.host.step_notes.note(name, values)
        self.metrics.add(
            *(self.objective, self.method, share.batch),
            share=share.loss,
            kl=kl,
            first=first,
            signal=self._account(share, inputs),
        )
        return share.loss * self.host.accelerator.num_processes

    @property
    def _beta(self) -> float:
        return self.host.args.beta

    def _gaussian(self, velocity: Velocity, inputs: Mapping[str, Any], j: int) -> StepGaussian:
        latent, rule = inputs["latents"][:, j], self.host.sampler.rule
        steps = torch.full((len(latent),), j, dtype=torch.long, device=latent.device)
        return rule.at(steps, latent, velocity(latent, rule.time_of(steps)))

    def _token_batch(self, step: StepGaussian, inputs: Mapping[str, Any], j: int) -> TokenBatch:
        """The step as a column: what was sampled is the stored latent, never drawn again."""
        log_ratio = self.objective.log_ratio(
            inputs["latents"][:, j + 1],
            step.mean,
            inputs["means"][:, j],
            step.spread,
            cps=self.host.sampler.sampling.sampler == "cps",
        ).unsqueeze(1)
        return TokenBatch(
            logprobs=log_ratio,
            old_logprobs=torch.zeros_like(log_ratio),
            mask=inputs["mask"],
            advantages=inputs["advantages"],
            forward={"dt": step.dt.unsqueeze(1)},
        )

    def _kl(self, step: StepGaussian, inputs: Mapping[str, Any], j: int) -> Tensor | None:
        """(B, 1), or None at beta 0."""
        if self._beta == 0.0:
            return None
        velocity = self.host.reference_velocity(inputs)
        if velocity is None:
            raise RuntimeError(f"{type(self.host).__name__}: beta above 0 without a reference")
        with torch.no_grad():
            reference = self._gaussian(velocity, inputs, j)
        return step_divergence(step.mean, reference.mean, step.rate).unsqueeze(1)

    def _account(self, share: Share, inputs: Mapping[str, Any]) -> SignalCounts:
        """Why each (image, step) pair carries gradient or not."""
        return account_objective(
            self.objective,
            share.batch,
            generated=torch.ones_like(share.batch.mask),
            unjudged=inputs["unjudged"].unsqueeze(1),
            equal_rewards=inputs["equal_rewards"].unsqueeze(1),
        )
