"""Pipelines of diffusers as models of images: one network is trained, the rest stays as it is. Here Stable Diffusion 3;
flux_flow.py has Flux, noise_unet.py the UNets of Stable Diffusion 1 and 2.

Needs the extra `flow`. A folder that a run has saved holds the network's weights (or its adapter) and
flow_pipeline.json, which names the pipeline that everything else comes from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.ops.flow_step import sigma_schedule
from posttrain.rollout.adapter_base import ModelFault
from posttrain.rollout.flow.flow_folder import SAVED, index_fault
from posttrain.rollout.flow.flux_flow import FluxFrame, FluxVelocity
from posttrain.rollout.flow.image_frame import DenoisingTimes
from posttrain.rollout.flow.noise_unet import NoiseUNet, UNetFrame
from posttrain.rollout.flow.pipeline_frame import PipelineFrame, PipelineModel, check_size


class SD3Velocity(PipelineModel):
    """forward(latents (B, C, H, W), times (B,), prompt (B, L, E), pooled (B, E')) -> velocity (B, C, H, W)."""

    part = "transformer"

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self.transformer = pipeline.transformer
        self.train_steps = int(pipeline.scheduler.config.num_train_timesteps)

    def forward(self, latents: Tensor, times: Tensor, prompt: Tensor, pooled: Tensor) -> Tensor:
        dtype = self.transformer.dtype
        return self.transformer(
            hidden_states=latents.to(dtype),
            timestep=times * self.train_steps,
            encoder_hidden_states=prompt.to(dtype),
            pooled_projections=pooled.to(dtype),
            return_dict=False,
        )[0]


class SD3Frame(PipelineFrame):
    """Of a StableDiffusion3Pipeline; its text encoders may lack T5."""

    frozen = ("vae", "text_encoder", "text_encoder_2", "text_encoder_3")

    def __init__(self, pipeline: Any, path: str, image_size: int | None = None) -> None:
        if getattr(pipeline.scheduler.config, "use_dynamic_shifting", False):
            raise ModelFault(
                f"{path}: its scheduler shifts times by the image's size, which SD3's does not do"
            )
        self.shift = float(pipeline.scheduler.config.shift)
        config, factor = pipeline.transformer.config, pipeline.vae_scale_factor
        size = image_size or config.sample_size * factor
        check_size(path, size, factor * config.patch_size, config.sample_size * factor)
        self.latent_shape = (config.in_channels, size // factor, size // factor)
        super().__init__(pipeline, path, size)

    def denoising_times(self, steps: int) -> DenoisingTimes:
        return DenoisingTimes(sigma_schedule(steps, self.shift))

    def encoded(self, prompt: str) -> dict[str, Tensor]:
        told, _, pooled, _ = self.pipeline.encode_prompt(
            prompt=[prompt],
            prompt_2=None,
            prompt_3=None,
            device=self.pipeline.text_encoder.device,
            do_classifier_free_guidance=False,
        )
        return {"prompt": told[0], "pooled": pooled[0]}


READERS: dict[str, tuple[type[PipelineModel], type[PipelineFrame]]] = {
    "StableDiffusion3Pipeline": (SD3Velocity, SD3Frame),
    "FluxPipeline": (FluxVelocity, FluxFrame),
    "StableDiffusionPipeline": (NoiseUNet, UNetFrame),
}
"""Class of a pipeline -> its network as a velocity model, and the frame."""


def load_pipeline(
    path: str,
    *,
    dtype: Any = None,
    revision: str | None = None,
    image_size: int | None = None,
    embedded_guidance: float | None = None,
) -> tuple[Any, Any]:
    """Model and frame. Raises ModelFault where diffusers is missing or the pipeline is another."""
    try:
        import diffusers
    except ImportError as error:
        raise ModelFault(
            f"{path} is read by diffusers, which cannot be imported ({error}); pip install 'posttrain[flow]'"
        ) from None
    try:
        index = diffusers.DiffusionPipeline.load_config(path, revision=revision)
        if (fault := index_fault(path, index, noise_models=True)) is not None:
            raise ModelFault(fault)
        name = str(index["_class_name"])
        model_class, frame_class = READERS[name]
        left_out = {
            part: None for part, kind in index.items() if kind == [None, None] or part in frame_class.without
        }
        pipeline: Any = getattr(diffusers, name).from_pretrained(
            path, torch_dtype=dtype or torch.float32, revision=revision, **left_out
        )
    except ModelFault:
        raise
    except (OSError, ValueError) as error:
        raise ModelFault(f"{path} cannot be read: {str(error).strip().splitlines()[0]}") from None
    guidance = {} if embedded_guidance is None else {"embedded_guidance": embedded_guidance}
    if guidance and not pipeline_embeds_guidance(pipeline):
        raise ModelFault(f"{path}: its network embeds no guidance; leave embedded_guidance out")
    model: Any = model_class(pipeline, **guidance)  # type: ignore[call-arg]  # each class has its own
    vars(model)["name_or_path"] = path  # an adapter's config names its base by it
    return model, frame_class(pipeline, path, image_size, **guidance)  # type: ignore[arg-type]


def pipeline_embeds_guidance(pipeline: Any) -> bool:
    """Whether its network is told the strength of the guidance, as a distilled one is (Flux.1-dev)."""
    network = getattr(pipeline, "transformer", None)
    return bool(network is not None and getattr(network.config, "guidance_embeds", False))


def load_trained(folder: Path, *, dtype: Any = None) -> tuple[Any, Any]:
    """What a run has saved: the pipeline it names, with the folder's weights."""
    from safetensors.torch import load_file

    saved = json.loads((folder / SAVED).read_text(encoding="utf-8"))
    model, frame = load_pipeline(saved.pop("pipeline"), dtype=dtype, **saved)
    weights = load_file(str(folder / "model.safetensors"))
    missing, unknown = model.load_state_dict(weights, strict=False)
    if missing or unknown:
        raise ModelFault(f"{folder} is of another model: {(*missing, *unknown)[0]}")
    vars(model)["name_or_path"] = str(folder)  # what an adapter on it is an adapter of
    return model, frame
