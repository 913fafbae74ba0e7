"""A masked-diffusion method's optimizer step: one backward for each forward pass of a likelihood estimate.

    for each pass: forward, term, backward

A joint graph over n passes would need n times the memory. Here each pass's graph is freed by its own backward before
the next begins. All but the last run with gradients held back, so that ranks exchange them once; the last one's loss
is returned, and transformers' training step does the backward that ends the micro-batch, as it always does.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from posttrain.objectives.base import StepTotals
from posttrain.objectives.masked_base import (
    DiffusionBatch,
    DiffusionObjective,
    reduced_loss,
    term_coefficients,
)
from posttrain.ops.masked_elbo import Noise
from posttrain.rollout.masked.predictor import MaskPredictor
from posttrain.rollout.masked.response_canvas import Canvas
from posttrain.trainers.masked.diffusion_metrics import DiffusionMetrics, signal_of
from posttrain.trainers.masked.likelihood import all_terms, from_buffer, pass_terms
from posttrain.trainers.policy.step_in_hand import StepHost, StepInHand
from posttrain.trainers.seam.held_back import backward_of_a_part, gradients_held_back


class DiffusionStepHost(StepHost, Protocol):
    """What the loss reads of its trainer beyond the step itself."""

    beta: float
    num_iterations: int
    predictor: MaskPredictor


class DiffusionStep(StepInHand):
    """`loss` for each micro-batch, in the order they come."""

    host: DiffusionStepHost
    objective: DiffusionObjective
    metrics: DiffusionMetrics

    def begin(self) -> StepTotals:
        """Counts over all micro-batches and ranks of the optimizer step that begins now."""
        return self.open([part["canvas_scored"].float() for part in self.slices()], lambda: []).totals

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Runs all backwards but the last, and returns the last pass's loss plus the others' values, so that the
        logged loss is the whole one: this rank's share of the step's loss, times the ranks."""
        host, position = self.host, self.position
        accumulation, ranks = host.current_gradient_accumulation_steps, host.accelerator.num_processes
        totals = self.begin() if position == 0 else self.current().totals
        canvas, noise = from_buffer(inputs)
        passes = self._passes_of_this_iteration(noise)
        noise = noise.passes(passes.start, passes.stop)
        known = self._known_terms(inputs, canvas, passes)
        predictor = host.predictor.with_model(model)
        coefficients = self._coefficients(predictor, canvas, noise, known, totals)

        seen: list[Tensor] = []
        value, loss = 0.0, torch.zeros(())
        for j in range(noise.num_passes):
            last = j == noise.num_passes - 1
            with nullcontext() if last else gradients_held_back(host.accelerator, model):
                terms = pass_terms(predictor, canvas, noise, j, self.objective.level)
                seen.append(terms.detach())
                loss = ranks * self._pass_loss(terms, j, known, coefficients, totals)
                if not last:
                    backward_of_a_part(host.accelerator, loss)
                    value = value + loss.detach()
        whole = self._whole_batch(known, torch.cat(seen, dim=1))
        for name, terms in (
            ("the old policy's terms", known["old_terms"]),
            ("the reference's terms", known["ref_terms"]),
            ("the policy's terms", whole.terms),
        ):
            host.step_notes.note(name, terms)
        exact = ranks * reduced_loss(self.objective, whole, totals, host.beta).detach()
        self._note(whole, noise, inputs, exact * accumulation)
        if position == accumulation - 1:
            self.close()
        return loss + (exact - loss.detach())

    def _passes_of_this_iteration(self, noise: Noise) -> slice:
        """The passes one estimate reads: all, or those of the current pass over the rollout."""
        if not self.objective.fresh_noise:
            return slice(0, noise.num_passes)
        iteration = (self.host._step // self.host.args.steps_per_generation) % self.host.num_iterations
        n = self.objective.num_passes
        return slice(iteration * n, (iteration + 1) * n)

    def _known_terms(self, inputs: dict[str, Any], canvas: Canvas, passes: slice) -> dict[str, Any]:
        """What a batch holds apart from the policy's own terms."""
        old, ref = inputs.get("old_terms"), inputs.get("ref_terms")
        return {
            "old_terms": None if old is None else old[:, passes],
            "ref_terms": None if ref is None else ref[:, passes],
            "advantages": inputs["advantages"],
            "mask": canvas.scored.float(),
            "num_passes": self.objective.num_passes,
            "canvas_length": self.host.max_completion_length,
        }

    def _whole_batch(self, known: dict[str, Any], terms: Tensor) -> DiffusionBatch:
        """Without stored old terms the policy is the one that sampled."""
        old = known["old_terms"]
        return DiffusionBatch(
            **{**known, "terms": terms, "old_terms": terms.detach() if old is None else old}
        )

    def _coefficients(
        self,
        predictor: MaskPredictor,
        canvas: Canvas,
        noise: Noise,
        known: dict[str, Any],
        totals: StepTotals,
    ) -> Tensor | None:
        """For an objective that needs all terms at once: the loss's derivative with respect to each. None where a
        pass's own graph says it: separable objectives, and a single pass."""
        if self.objective.separable or noise.num_passes == 1:
            return None
        if known["old_terms"] is None and self.host.beta == 0.0:
            # On-policy the terms enter by their difference to the old ones alone, which is zero: no first pass.
            shape = noise.weights.shape if self.objective.level == "sequence" else noise.masks.shape
            terms = torch.zeros(shape, device=noise.weights.device)
        else:
            terms = all_terms(predictor, canvas, noise, self.objective.level, rows_at_once=len(noise.weights))
        return term_coefficients(self.objective, self._whole_batch(known, terms), totals, self.host.beta)

    def _pass_loss(
        self, terms: Tensor, j: int, known: dict[str, Any], coefficients: Tensor | None, totals: StepTotals
    ) -> Tensor:
        """What pass j adds to the gradient of the step's loss. ()."""
        if coefficients is not None:
            return (coefficients[:, j : j + 1] * terms).sum()
        own = {
            **known,
            **{
                k: v[:, j : j + 1]
                for k, v in known.items()
                if k in ("old_terms", "ref_terms") and v is not None
            },
        }
        return reduced_loss(self.objective, self._whole_batch(own, terms), totals, self.host.beta)

    def _note(self, whole: DiffusionBatch, noise: Noise, inputs: dict[str, Any], loss: Tensor) -> None:
        signal = signal_of(
            self.objective,
            whole,
            noise,
            generated=inputs["generated_mask"],
            unjudged=inputs["unjudged"],
            truncated=inputs["completion_mask"].sum(1) == 0,
        )
        kl = self.objective.penalty(whole) if self.host.beta != 0.0 else None
        self.metrics.add(self.objective, self.method, whole, noise=noise, loss=loss, kl=kl, signal=signal)
