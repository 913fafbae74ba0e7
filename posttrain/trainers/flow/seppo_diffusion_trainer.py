"""SePPO for images: posttrain/preferences/seppo_diffusion.py, whose rounds differ in their reference alone.

    round k: r ~ U{0, ..., k-1}; each pair's other image ~ pi_r(. | prompt), as it is trained on; after it pi_k joins
    the pool

One training of all rounds: optimizer and schedule run through. The pool is a folder beside the checkpoints, and holds
what is trained: of an adapter the adapter.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# Upstream annotates its trainers more widely than what their attributes hold once they are built.

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from transformers import TrainingArguments

from posttrain.preferences.seppo_diffusion import SePPODiffusion
from posttrain.references.checkpoint_pool import ReferencePool
from posttrain.rollout.flow.flow_sampler import guided, sample_plainly
from posttrain.rollout.flow.image_frame import on_device
from posttrain.rollout.flow.row_noise import row_noise
from posttrain.trainers.flow.diffusion_dpo_trainer import DiffusionDPOTrainer
from posttrain.trainers.flow.swapped_weights import SwappedWeights
from posttrain.trainers.seam.config import flat_config

SePPODiffusionConfig = flat_config("SePPODiffusionConfig", TrainingArguments, SePPODiffusion, __name__)

POOL, WEIGHTS = "pool", "trained.safetensors"


class SePPODiffusionTrainer(DiffusionDPOTrainer):
    """SePPO on images that are good.

    `SePPODiffusionTrainer(model, SePPODiffusionConfig(output_dir=..., rounds=7), winners, frame=frame)`, a
    `transformers.Trainer` on rows of "prompt" and "image". `help(SePPODiffusionConfig)` lists its settings.

    model  the velocity model: model(latents, times, **conditions)
    frame  prompts to conditions, images to latents (rollout.flow.image_frame.ImageFrame)
    """

    config_class: ClassVar[Any] = SePPODiffusionConfig
    settings_class: ClassVar[Any] = SePPODiffusion
    image_columns: ClassVar[dict[str, str]] = {"winners": "image"}

    def __init__(self, model: Any, args: Any, *rows: Any, **named: Any) -> None:
        super().__init__(model, args, *rows, **named)
        settings: SePPODiffusion = self.settings
        if args.max_steps not in (-1, settings.total_steps):
            raise ValueError(
                f"SePPO: max_steps is {args.max_steps}, but {settings.rounds} rounds of {settings.steps_per_round} "
                f"steps are {settings.total_steps}; make them agree"
            )
        args.max_steps = settings.total_steps
        self.pool = ReferencePool(Path(args.output_dir) / POOL, args.seed)
        self._round = 0

    # Rounds

    def training_step(self, *arguments: Any, **named: Any) -> Tensor:
        self._enter_round()
        return super().training_step(*arguments, **named)

    def _enter_round(self) -> None:
        """At the first step of a round the policy joins the pool, and the round's reference is drawn and read."""
        finished, of_round = divmod(self.state.global_step, self.settings.steps_per_round)
        if self._round == finished + 1:
            return
        main = self.accelerator.is_main_process
        if of_round == 0 and main:
            self._keep_in_pool(finished)
            policy = SwappedWeights.of(self.model)
            self.pool.add(lambda folder: policy.write(folder / WEIGHTS))
        self.accelerator.wait_for_everyone()
        if len(self.pool) <= finished:
            raise FileNotFoundError(
                f"{self.pool.folder}: {len(self.pool)} checkpoints of past rounds, and round {finished + 1} draws from "
                f"{finished + 1}; a resume needs the folder '{POOL}' beside the checkpoint"
            )
        self._round = finished + 1
        index = self.pool.draw(self._round, self.settings.reference)
        if main:
            self.pool.record(self._round, index)
        self.reference = SwappedWeights.read(self.pool.path(index) / WEIGHTS)

    def _keep_in_pool(self, count: int) -> None:
        """Removes checkpoints of rounds that the run has gone back before."""
        for index in range(count, len(self.pool)):
            shutil.rmtree(self.pool.path(index))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Also takes the pool that stands beside the checkpoint; a fresh run empties its own at the first step."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        self._round = 0
        beside = Path(checkpoint).parent / POOL
        if self.accelerator.is_main_process and beside.resolve() != self.pool.folder.resolve():
            shutil.rmtree(self.pool.folder, ignore_errors=True)
            if beside.is_dir():
                shutil.copytree(beside, self.pool.folder)
        self.accelerator.wait_for_everyone()

    # Pairs

    def losers(self, reference: Any, inputs: Mapping[str, Any], key: tuple[object, ...]) -> Tensor:
        """Sampled from the reference that also measures the pair."""
        rows, winners = inputs["row"].tolist(), inputs["winners"]
        noise = row_noise(winners.shape[1:], rows, *key, "sample").to(winners)
        scale = self.settings.sample_guidance
        without = None if scale == 1.0 else on_device(self.frame.no_prompts(len(rows)), winners.device)
        velocity = guided(reference, self.conditions_of(inputs), without, scale)
        return sample_plainly(velocity, noise, self.frame.denoising_times(self.settings.sample_steps))

    def log(self, logs: dict[str, float], *arguments: Any, **named: Any) -> None:
        """Also says which checkpoint the round compares with."""
        if "loss" in logs and self.pool.draws:
            logs = {**logs, f"{self.method}/reference": float(self.pool.draws[-1])}
        super().log(logs, *arguments, **named)
