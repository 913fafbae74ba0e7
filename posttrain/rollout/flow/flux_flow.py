"""Flux.1 out of diffusers as a flow model: latents packed in patches of 2 x 2, guidance embedded by a distilled model.

Its times are placed by the image's size (resolution-dependent shifting, https://arxiv.org/abs/2403.03206, eq. 23), or
by a fixed shift where the scheduler says so (schnell).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from posttrain.rollout.adapter_base import ModelFault
from posttrain.rollout.flow.image_frame import DenoisingTimes
from posttrain.rollout.flow.pipeline_frame import PipelineFrame, PipelineModel, check_size

GUIDANCE = 3.5
"""Embedded strength of the guidance: the pipeline's default."""


class FluxVelocity(PipelineModel):
    """forward(latents (B, C, H, W), times (B,), prompt (B, L, E), pooled (B, E')) -> velocity (B, C, H, W).

    embedded_guidance  strength that the network is told, where it embeds one
    """

    part = "transformer"

    def __init__(self, pipeline: Any, embedded_guidance: float = GUIDANCE) -> None:
        super().__init__()
        self.transformer = pipeline.transformer
        self.told = embedded_guidance if pipeline.transformer.config.guidance_embeds else None

    def forward(self, latents: Tensor, times: Tensor, prompt: Tensor, pooled: Tensor) -> Tensor:
        dtype, (_, _, height, width) = self.transformer.dtype, latents.shape
        made = self.transformer(
            hidden_states=packed(latents).to(dtype),
            timestep=times,
            guidance=None if self.told is None else torch.full_like(times, self.told),
            pooled_projections=pooled.to(dtype),
            encoder_hidden_states=prompt.to(dtype),
            txt_ids=latents.new_zeros(prompt.shape[1], 3),
            img_ids=patch_places(height // 2, width // 2).to(latents),
            return_dict=False,
        )[0]
        return unpacked(made, height, width)


def packed(latents: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W / 4, 4 C): a patch's channels by channel, row, column."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, height * width // 4, 4 * channels)


def unpacked(patches: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `packed`."""
    batch, _, channels = patches.shape
    whole = patches.reshape(batch, height // 2, width // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return whole.reshape(batch, channels // 4, height, width)


def patch_places(rows: int, columns: int) -> Tensor:
    """(0, row, column) of each patch. (rows columns, 3)"""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], -1).reshape(rows * columns, 3)


class FluxFrame(PipelineFrame):
    """Of a FluxPipeline: CLIP's pooled state and T5's states."""

    frozen = ("vae", "text_encoder", "text_encoder_2")
    without = ("image_encoder", "feature_extractor")

    def __init__(
        self, pipeline: Any, path: str, image_size: int | None = None, embedded_guidance: float = GUIDANCE
    ) -> None:
        scheduler = pipeline.scheduler.config
        if scheduler.time_shift_type != "exponential" or any(
            scheduler.get(name) for name in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
        ):
            raise ModelFault(f"{path}: its scheduler places times in a way that is not known here")
        factor = pipeline.vae_scale_factor
        size = image_size or pipeline.default_sample_size * factor
        check_size(path, size, 2 * factor)
        self.latent_shape = (pipeline.transformer.config.in_channels // 4, size // factor, size // factor)
        embeds = pipeline.transformer.config.guidance_embeds
        super().__init__(pipeline, path, size, **({"embedded_guidance": embedded_guidance} if embeds else {}))

    def denoising_times(self, steps: int) -> DenoisingTimes:
        config, shift = self.pipeline.scheduler.config, 1.0
        if config.use_dynamic_shifting:
            patches = self.latent_shape[1] * self.latent_shape[2] // 4
            few, many = config.base_image_seq_len, config.max_image_seq_len
            slope = (config.max_shift - config.base_shift) / (many - few)
            shift = math.exp(config.base_shift + slope * (patches - few))
        else:
            shift = float(config.shift)
        even = torch.linspace(1.0, 1 / steps, steps, dtype=torch.float64)
        times = shift * even / (1 + (shift - 1) * even)
        return DenoisingTimes(torch.cat([times, torch.zeros(1, dtype=torch.float64)]))

    def encoded(self, prompt: str) -> dict[str, Tensor]:
        told, pooled, _ = self.pipeline.encode_prompt(
            prompt=[prompt], prompt_2=None, device=self.pipeline.text_encoder.device
        )
        return {"prompt": told[0], "pooled": pooled[0]}
