"""The UNet of a StableDiffusionPipeline (Stable Diffusion 1 and 2), a model of noise, as a velocity model.

Its points stand on the straight line (ops/noise_line.py): pairs of images are weighed there, and images are made by
DDIM, at the steps where the pipeline's scheduler settings place them. It has no steps of a flow, so methods that learn
from rewards do not train it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posttrain.ops.noise_line import point_weight, velocity_of
from posttrain.preferences.diffusion_dpo import time_on_line
from posttrain.rollout.adapter_base import ModelFault
from posttrain.rollout.flow.image_frame import DenoisingTimes
from posttrain.rollout.flow.pipeline_frame import PipelineFrame, PipelineModel, check_size


class NoiseUNet(PipelineModel):
    """forward(latents (B, C, H, W), times (B,), prompt (B, L, E)) -> velocity (B, C, H, W), float32.

    Latents and times are the line's; a time stands for the step of the training schedule that is nearest to it.
    """

    part = "unet"

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self.unet = pipeline.unet
        self.prediction = str(pipeline.scheduler.config.prediction_type)
        # no buffers: they would be cast with the weights, and steps be confused
        self.alpha_bars: Tensor = pipeline.scheduler.alphas_cumprod.double()

    def forward(self, latents: Tensor, times: Tensor, prompt: Tensor) -> Tensor:
        dtype = self.unet.dtype
        places = time_on_line(self.alpha_bars).to(times)
        steps = (times.unsqueeze(1) - places).abs().argmin(1)
        alpha_bar = self.alpha_bars.to(times.device)[steps].to(latents.dtype)
        weight = point_weight(alpha_bar).view(-1, 1, 1, 1)
        output = self.unet(
            (latents * weight).to(dtype), steps, encoder_hidden_states=prompt.to(dtype), return_dict=False
        )[0]
        return velocity_of(output.to(latents.dtype), latents, alpha_bar, self.prediction)


class UNetFrame(PipelineFrame):
    """Of a StableDiffusionPipeline; its safety checker is not loaded."""

    frozen = ("vae", "text_encoder")
    without = ("safety_checker", "feature_extractor", "image_encoder")

    def __init__(self, pipeline: Any, path: str, image_size: int | None = None) -> None:
        config, factor = pipeline.unet.config, pipeline.vae_scale_factor
        if config.in_channels != config.out_channels or config.time_cond_proj_dim is not None:
            raise ModelFault(
                f"{path}: its UNet reads more than latents, time and prompt, which is not done here"
            )
        if config.addition_embed_type is not None or config.class_embed_type is not None:
            raise ModelFault(f"{path}: its UNet has further embeddings, which are not read here")
        size = image_size or config.sample_size * factor
        check_size(path, size, factor * 2 ** (len(config.block_out_channels) - 1))
        self.latent_shape = (config.in_channels, size // factor, size // factor)
        self.line_times = time_on_line(pipeline.scheduler.alphas_cumprod.double())
        super().__init__(pipeline, path, size)

    def denoising_times(self, steps: int) -> DenoisingTimes:
        """DDIM's, from the settings of the pipeline's scheduler. ValueError for more steps than it was trained with."""
        from diffusers import DDIMScheduler

        known = len(self.pipeline.scheduler.alphas_cumprod)
        if steps > known:
            raise ValueError(
                f"{self.path}: {steps} denoising steps, and its schedule has {known}; take fewer"
            )
        scheduler: Any = DDIMScheduler.from_config(self.pipeline.scheduler.config)
        scheduler.set_timesteps(steps)
        passed = scheduler.alphas_cumprod[scheduler.timesteps.clamp(max=known - 1)].double()
        alpha_bars = torch.cat([passed, scheduler.final_alpha_cumprod.double().reshape(1)])
        weights = point_weight(alpha_bars)
        return DenoisingTimes(time_on_line(alpha_bars), start=float(1 / weights[0]), end=float(weights[-1]))

    def encoded(self, prompt: str) -> dict[str, Tensor]:
        told, _ = self.pipeline.encode_prompt([prompt], self.pipeline.text_encoder.device, 1, False)
        return {"prompt": told[0]}
