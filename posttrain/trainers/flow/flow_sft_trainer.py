"""Supervised training of a flow model: posttrain/objectives/flow_sft.py on `transformers.Trainer`."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# Upstream annotates its trainers more widely than what their attributes hold once they are built.

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import TrainingArguments

from posttrain.objectives.flow_sft import FlowSFT
from posttrain.rollout.flow.image_frame import mixed_conditions, on_device
from posttrain.rollout.flow.row_noise import row_noise, row_uniform
from posttrain.trainers.flow.flow_ingredients import require_flow
from posttrain.trainers.flow.given_images import GivenImagesTrainer
from posttrain.trainers.seam.config import flat_config

FlowSFTConfig = flat_config("FlowSFTConfig", TrainingArguments, FlowSFT, __name__)


class FlowSFTTrainer(GivenImagesTrainer):
    """Supervised training of a flow model on given images.

    `FlowSFTTrainer(model, FlowSFTConfig(output_dir=...), rows, frame=frame)`, a `transformers.Trainer` on rows of
    "prompt" and "image". `help(FlowSFTConfig)` lists its settings.

    model  the velocity model: model(latents, times, **conditions)
    frame  prompts to conditions, images to latents (rollout.flow.image_frame.ImageFrame)
    """

    config_class: ClassVar[Any] = FlowSFTConfig
    settings_class: ClassVar[Any] = FlowSFT
    image_columns: ClassVar[dict[str, str]] = {"latents": "image"}

    def __init__(self, model: Any, args: Any, *rows: Any, **named: Any) -> None:
        super().__init__(model, args, *rows, **named)
        require_flow(type(self), self.frame)

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
        """Mean over the micro-batch's rows and elements. A row's time and noise follow from its number and the step,
        in an evaluation from its number alone."""
        rows = inputs["row"].tolist()
        key = (self.args.seed, "flow_sft", self.state.global_step if model.training else "evaluation")
        clean = inputs["latents"]
        drawn = row_uniform(2, rows, *key, "time").to(clean.device)
        noise = row_noise(clean.shape[1:], rows, *key, "noise").to(clean)
        times = self._times(drawn[:, 0])
        conditions = self.conditions_of(inputs)
        if model.training and self.settings.condition_dropout:
            without = on_device(self.frame.no_prompts(len(rows)), clean.device)
            conditions = mixed_conditions(conditions, without, drawn[:, 1] >= self.settings.condition_dropout)
        weight = times.view(-1, *[1] * (clean.dim() - 1))
        velocity = model((1 - weight) * clean + weight * noise, times, **conditions).float()
        loss = (velocity - (noise - clean)).square().mean()
        return (loss, {}) if return_outputs else loss

    def _times(self, uniform: Tensor) -> Tensor:
        if self.settings.times == "uniform":
            return uniform
        return torch.special.ndtri(uniform.double().clamp(1e-6, 1 - 1e-6)).sigmoid().to(uniform)
