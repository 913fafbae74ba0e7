"""Scores a rollout of a masked-diffusion model: terms of a likelihood estimate instead of log-probs left to right."""

from __future__ import annotations

from typing import Any, Protocol

from accelerate import Accelerator
from torch import Tensor

from posttrain.objectives.masked_base import DiffusionObjective
from posttrain.ops.masked_elbo import Noise
from posttrain.rollout.masked.predictor import MaskPredictor
from posttrain.rollout.masked.response_canvas import Canvas, lay_canvas
from posttrain.trainers.masked.likelihood import all_terms, draw_noise, to_buffer
from posttrain.trainers.seam.trl_seam import use_adapter


class ScoredHost(Protocol):
    """What scoring reads of its trainer. The names are TRL's and transformers'."""

    args: Any
    accelerator: Accelerator
    model: Any
    ref_model: Any
    beta: float
    state: Any
    num_iterations: int
    max_completion_length: int
    _tokenizer: Any


class ElboScorer:
    """Canvas and noise of a rollout, and on them the terms of the old policy and of the reference."""

    def __init__(self, host: ScoredHost, objective: DiffusionObjective, predictor: MaskPredictor) -> None:
        self.host = host
        self.objective = objective
        self.predictor = predictor

    def own_predictor(self) -> MaskPredictor:
        """The policy on this rank, without the wrapper that exchanges gradients."""
        policy: Any = self.host.accelerator.unwrap_model(self.host.model)
        return self.predictor.with_model(policy)

    def add_terms(self, output: dict[str, Any]) -> None:
        """Adds to TRL's buffer what the loss of every later micro-batch reads."""
        host, objective = self.host, self.objective
        canvas = lay_canvas(
            output["prompt_ids"],
            output["prompt_mask"],
            output["completion_ids"],
            output["completion_mask"],
            tail=objective.tail,
            length=host.max_completion_length,
            mask_id=self.predictor.mask_id,
            end_id=host._tokenizer.eos_token_id,
        )
        noise = draw_noise(
            objective,
            canvas,
            output["row"],
            iterations=host.num_iterations if objective.fresh_noise else 1,
            seed=host.args.seed,
            step=host.state.global_step,
        )
        output |= to_buffer(canvas, noise)
        micro_batches = host.args.steps_per_generation * host.num_iterations
        if host.args.gradient_accumulation_steps % micro_batches:
            # later steps train on it too, and by then the policy has moved
            output["old_terms"] = self._terms(self.own_predictor(), canvas, noise)
        if host.beta != 0.0:
            output["ref_terms"] = self._reference_terms(canvas, noise)

    def _terms(self, predictor: MaskPredictor, canvas: Canvas, noise: Noise) -> Tensor:
        rows = self.host.args.per_device_train_batch_size
        return all_terms(predictor, canvas, noise, self.objective.level, rows_at_once=rows)

    def _reference_terms(self, canvas: Canvas, noise: Noise) -> Tensor:
        host = self.host
        if host.ref_model is not None:
            return self._terms(self.predictor.with_model(host.ref_model), canvas, noise)
        policy: Any = host.accelerator.unwrap_model(host.model)
        with use_adapter(policy, adapter_name="ref" if "ref" in policy.peft_config else None):
            return self._terms(self.predictor.with_model(policy), canvas, noise)
