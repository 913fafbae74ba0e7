"""Stable Diffusion 3 out of diffusers as a flow model: its transformer is trained, the rest stays as it is.

Needs the extra `flow`. A folder that a run has saved holds the transformer's weights (or its adapter) and
flow_pipeline.json, which names the pipeline that everything else comes from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from posttrain.rollout.adapter_base import ModelFault
from posttrain.rollout.flow.flow_folder import PIPELINE, SAVED, pipeline_fault

CACHED_PROMPTS = 4096
"""Prompts whose conditions are kept on the CPU."""


class SD3Velocity(nn.Module):
    """forward(latents (B, C, H, W), times (B,), prompt (B, L, E), pooled (B, E')) -> velocity (B, C, H, W)."""

    def __init__(self, transformer: Any, train_steps: int) -> None:
        super().__init__()
        self.transformer = transformer
        self.train_steps = train_steps

    def forward(self, latents: Tensor, times: Tensor, prompt: Tensor, pooled: Tensor) -> Tensor:
        dtype = self.transformer.dtype
        return self.transformer(
            hidden_states=latents.to(dtype),
            timestep=times * self.train_steps,
            encoder_hidden_states=prompt.to(dtype),
            pooled_projections=pooled.to(dtype),
            return_dict=False,
        )[0]

    def gradient_checkpointing_enable(self, **_: Any) -> None:
        self.transformer.enable_gradient_checkpointing()

    def enable_input_require_grads(self) -> None:
        """What peft asks for before recomputation, which diffusers does without."""

    def get_input_embeddings(self) -> None:
        """Its inputs are latents."""

    def get_output_embeddings(self) -> None:
        """Its outputs are a velocity."""


class SD3Frame:
    """An ImageFrame of a StableDiffusion3Pipeline; the pipeline's text encoders may lack T5."""

    def __init__(self, pipeline: Any, path: str, image_size: int | None = None) -> None:
        self.pipeline, self.path = pipeline, path
        self.shift = float(pipeline.scheduler.config.shift)
        whole, factor = pipeline.transformer.config.sample_size, pipeline.vae_scale_factor
        self.image_size = image_size or whole * factor
        patch = pipeline.transformer.config.patch_size
        if self.image_size % (factor * patch) or self.image_size > whole * factor:
            raise ModelFault(
                f"{path}: images of {self.image_size} pixels a side cannot be made; take a multiple of "
                f"{factor * patch}, at most {whole * factor}"
            )
        side = self.image_size // factor
        self.latent_shape: tuple[int, ...] = (pipeline.transformer.config.in_channels, side, side)
        for part in (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3):
            if part is not None:
                part.requires_grad_(False).eval()
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    def place(self, device: Any) -> None:
        """The frozen parts go where the model is."""
        for part in ("vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
            one = vars(self.pipeline)[part]
            if one is not None:
                one.to(device)

    def read_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if len(self._known) + len(new) > CACHED_PROMPTS:
            self._known = {}
            new = list(dict.fromkeys(prompts))
        for prompt in new:
            self._known[prompt] = self._encoded(prompt)
        found = [self._known[prompt] for prompt in prompts]
        return {
            "prompt": torch.stack([one for one, _ in found]),
            "pooled": torch.stack([two for _, two in found]),
        }

    def no_prompts(self, count: int) -> dict[str, Tensor]:
        return self.read_prompts([""] * count)

    @torch.no_grad()
    def _encoded(self, prompt: str) -> tuple[Tensor, Tensor]:
        told, _, pooled, _ = self.pipeline.encode_prompt(
            prompt=[prompt],
            prompt_2=None,
            prompt_3=None,
            device=self.pipeline.text_encoder.device,
            do_classifier_free_guidance=False,
        )
        return told[0].float().cpu(), pooled[0].float().cpu()

    @torch.no_grad()
    def to_images(self, latents: Tensor) -> list[Image.Image]:
        vae, images = self.pipeline.vae, []
        for one in latents:  # one at a time: a VAE's memory is large
            scaled = one.unsqueeze(0) / vae.config.scaling_factor + vae.config.shift_factor
            decoded = vae.decode(scaled.to(vae.device, vae.dtype), return_dict=False)[0]
            images += self.pipeline.image_processor.postprocess(decoded.float().cpu(), output_type="pil")
        return images

    @torch.no_grad()
    def to_latents(self, images: Sequence[Image.Image]) -> Tensor:
        vae, found, size = self.pipeline.vae, [], (self.image_size, self.image_size)
        for image in images:
            plain = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
            pixels = self.pipeline.image_processor.preprocess(plain).to(vae.device, vae.dtype)
            latent = vae.encode(pixels).latent_dist.mode()
            found.append(((latent - vae.config.shift_factor) * vae.config.scaling_factor)[0].float())
        return torch.stack(found)

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        Path(folder, SAVED).write_text(
            json.dumps({"pipeline": self.path, "image_size": self.image_size}, indent=1) + "\n",
            encoding="utf-8",
        )


def load_pipeline(
    path: str, *, dtype: Any = None, revision: str | None = None, image_size: int | None = None
) -> tuple[SD3Velocity, SD3Frame]:
    """Model and frame. Raises ModelFault where diffusers is missing or the pipeline is another."""
    try:
        from diffusers import StableDiffusion3Pipeline
    except ImportError as error:
        raise ModelFault(
            f"{path} is read by diffusers, which cannot be imported ({error}); pip install 'posttrain[flow]'"
        ) from None
    folder = Path(path)
    if folder.is_dir() and (fault := pipeline_fault(folder)) is not None:
        raise ModelFault(fault)
    try:
        pipeline: Any = StableDiffusion3Pipeline.from_pretrained(
            path, torch_dtype=dtype or torch.float32, revision=revision, **_left_out(folder)
        )
    except (OSError, ValueError) as error:
        raise ModelFault(f"{path} cannot be read: {str(error).strip().splitlines()[0]}") from None
    if getattr(pipeline.scheduler.config, "use_dynamic_shifting", False):
        raise ModelFault(f"{path}: its scheduler shifts times by the image's size, which is not done here")
    model = SD3Velocity(pipeline.transformer, int(pipeline.scheduler.config.num_train_timesteps))
    vars(model)["name_or_path"] = path  # an adapter's config names its base by it
    return model, SD3Frame(pipeline, path, image_size)


def _left_out(folder: Path) -> dict[str, None]:
    """Parts that the pipeline was saved without (T5, say): diffusers wants to hear of each."""
    if not (folder / PIPELINE).is_file():
        return {}
    index = json.loads((folder / PIPELINE).read_text(encoding="utf-8"))
    return {name: None for name, kind in index.items() if kind == [None, None]}


def load_trained(folder: Path, *, dtype: Any = None) -> tuple[SD3Velocity, SD3Frame]:
    """What a run has saved: the pipeline it names, with the folder's weights."""
    from safetensors.torch import load_file

    saved = json.loads((folder / SAVED).read_text(encoding="utf-8"))
    model, frame = load_pipeline(saved["pipeline"], dtype=dtype, image_size=saved["image_size"])
    weights = load_file(str(folder / "model.safetensors"))
    missing, unknown = model.load_state_dict(weights, strict=False)
    if missing or unknown:
        raise ModelFault(f"{folder} is of another model: {(*missing, *unknown)[0]}")
    return model, frame
