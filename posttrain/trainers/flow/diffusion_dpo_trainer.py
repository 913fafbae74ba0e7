"""Pairs of images: posttrain/preferences/diffusion_dpo.py on `transformers.Trainer`."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# Upstream annotates its trainers more widely than what their attributes hold once they are built.

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import TrainingArguments

from posttrain.preferences.diffusion_dpo import (
    DiffusionDPO,
    ErrorBatch,
    drawn_times,
    noise_model_fault,
    noised,
    squared_errors,
)
from posttrain.rollout.flow.row_noise import row_noise, row_uniform
from posttrain.trainers.flow.given_images import GivenImagesTrainer
from posttrain.trainers.flow.swapped_weights import SwappedWeights
from posttrain.trainers.seam.config import flat_config

DiffusionDPOConfig = flat_config("DiffusionDPOConfig", TrainingArguments, DiffusionDPO, __name__)


class DiffusionDPOTrainer(GivenImagesTrainer):
    """Diffusion-DPO on pairs of images.

    `DiffusionDPOTrainer(model, DiffusionDPOConfig(output_dir=...), rows, frame=frame)`, a `transformers.Trainer` on
    rows of "prompt", "chosen_image" and "rejected_image". `help(DiffusionDPOConfig)` lists its settings. The reference
    is the model as it is now.

    model  the velocity model: model(latents, times, **conditions)
    frame  prompts to conditions, images to latents (rollout.flow.image_frame.ImageFrame)
    """

    config_class: ClassVar[Any] = DiffusionDPOConfig
    settings_class: ClassVar[Any] = DiffusionDPO
    image_columns: ClassVar[dict[str, str]] = {"winners": "chosen_image", "losers": "rejected_image"}

    def __init__(self, model: Any, args: Any, *rows: Any, **named: Any) -> None:
        super().__init__(model, args, *rows, **named)
        fault = noise_model_fault(self.settings) if self.frame.line_times is not None else None
        if fault is not None:
            raise ValueError(f"{type(self).__name__}: {fault}")
        self.method = self.settings_class.__module__.rsplit(".", 1)[-1]
        self.reference = SwappedWeights.of(self.model)
        self._noted: dict[bool, dict[str, list[Tensor]]] = {True: defaultdict(list), False: defaultdict(list)}

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
        """Mean over the micro-batch's pairs."""
        training = model.training
        batch = self.errors(model, inputs)
        for name, values in self.settings.metrics(batch).items():
            self._noted[training][name].append(values)
        loss = self.settings.pair_loss(batch).mean()
        return (loss, {}) if return_outputs else loss

    def errors(self, model: Any, inputs: Mapping[str, Any]) -> ErrorBatch:
        """Of the policy and of the reference, at the same points. A row's times and noises follow from its number and
        the step, in an evaluation from its number alone."""
        key = (self.args.seed, self.method, self.state.global_step if model.training else "evaluation")
        rows, conditions = inputs["row"].tolist(), self.conditions_of(inputs)
        # The reference first: its weights must be gone again before the policy's forward (SwappedWeights).
        with self.reference.inside(self.model) as reference:
            clean = torch.cat([inputs["winners"], self.losers(reference, inputs, key)])
            times, noise = self._draw(rows, clean, key)
            both = {name: torch.cat([values, values]) for name, values in conditions.items()}
            theirs = self._measure(reference, clean, noise, times, both)
        was_training = model.training
        model.eval()  # dropout would make the policy another than the reference where both are the same weights
        try:
            mine = self._measure(model, clean, noise, times, both)
        finally:
            model.train(was_training)
        (winner, loser), (ref_winner, ref_loser) = mine.chunk(2), theirs.chunk(2)
        return ErrorBatch(winner, loser, ref_winner, ref_loser)

    def losers(self, reference: Any, inputs: Mapping[str, Any], key: tuple[object, ...]) -> Tensor:
        """Latents of the pairs' other images. (B, C, H, W)"""
        return inputs["losers"]

    def _draw(self, rows: list[int], clean: Tensor, key: tuple[object, ...]) -> tuple[Tensor, Tensor]:
        """Times (2 B,) and noises (2 B, ...), those of the winners first."""
        drawn = row_uniform(2, rows, *key, "time").to(clean.device)
        of_losers = drawn[:, 0] if self.settings.share_time else drawn[:, 1]
        law, steps = self.settings.times, self.frame.line_times
        times = drawn_times(torch.cat([drawn[:, 0], of_losers]), law, steps)
        noise = row_noise(clean.shape[1:], rows, *key, "noise")
        other = (
            noise if self.settings.share_noise else row_noise(clean.shape[1:], rows, *key, "loser's noise")
        )
        return times, torch.cat([noise, other]).to(clean)

    def _measure(
        self, model: Any, clean: Tensor, noise: Tensor, times: Tensor, conditions: Mapping[str, Tensor]
    ) -> Tensor:
        velocity = model(noised(clean, noise, times), times, **conditions)
        return squared_errors(velocity, clean, noise, times, self.settings.error)

    def log(self, logs: dict[str, float], *arguments: Any, **named: Any) -> None:
        """As upstream's, with means over the pairs since the last log, of all ranks."""
        if "loss" in logs or "eval_loss" in logs:
            training = "loss" in logs
            noted, self._noted[training] = self._noted[training], defaultdict(list)
            prefix = self.method if training else f"eval_{self.method}"
            for name, values in noted.items():
                found = self.accelerator.gather(torch.cat(values).float().mean().reshape(1))
                logs = {**logs, f"{prefix}/{name}": found.mean().item()}
        super().log(logs, *arguments, **named)
