"""What models out of diffusers' pipelines share: the trained network as a velocity model, the rest as an ImageFrame."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from posttrain.rollout.adapter_base import ModelFault
from posttrain.rollout.flow.flow_folder import SAVED

CACHED_BYTES = 2**32
"""Of prompts' conditions that are kept on the CPU."""


class PipelineModel(nn.Module):
    """The network of a pipeline that is trained. A subclass calls it by the name that it has in the pipeline, so that
    its weights are named as diffusers names an adapter's."""

    part: ClassVar[str]

    @property
    def network(self) -> Any:
        return self.get_submodule(self.part)

    def gradient_checkpointing_enable(self, **_: Any) -> None:
        self.network.enable_gradient_checkpointing()

    def enable_input_require_grads(self) -> None:
        """What peft asks for before recomputation, which diffusers does without."""

    def get_input_embeddings(self) -> None:
        """Its inputs are latents."""

    def get_output_embeddings(self) -> None:
        """Its outputs are a velocity."""


class PipelineFrame:
    """An ImageFrame of a pipeline: autoencoder and text encoders, frozen.

    A subclass names the frozen parts, sets `latent_shape`, and has `denoising_times` and `encoded`.

    path   folder or hub name that it was read from, which a saved model names again
    saved  further arguments of load_pipeline that it was read with
    """

    frozen: ClassVar[tuple[str, ...]]
    without: ClassVar[tuple[str, ...]] = ()
    """Parts of the pipeline that are not loaded."""
    line_times: Tensor | None = None
    latent_shape: tuple[int, ...]

    def __init__(self, pipeline: Any, path: str, image_size: int, **saved: Any) -> None:
        self.pipeline, self.path, self.image_size, self.saved = pipeline, path, image_size, saved
        self._known: dict[str, dict[str, Tensor]] = {}
        for part in self._parts():
            part.requires_grad_(False).eval()

    def _parts(self) -> list[Any]:
        parts = (vars(self.pipeline)[name] for name in self.frozen)
        return [part for part in parts if part is not None]

    def place(self, device: Any) -> None:
        """The frozen parts go where the model is."""
        for part in self._parts():
            part.to(device)

    def encoded(self, prompt: str) -> dict[str, Tensor]:
        """The conditions of one prompt, without a row's dimension."""
        raise NotImplementedError  # each family of pipelines has text encoders of its own

    def read_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._known:
                with torch.no_grad():
                    found = {name: value.float().cpu() for name, value in self.encoded(prompt).items()}
                if (len(self._known) + 1) * 4 * sum(value.numel() for value in found.values()) > CACHED_BYTES:
                    self._known = {
                        one: self._known[one] for one in dict.fromkeys(prompts) if one in self._known
                    }
                self._known[prompt] = found
        rows = [self._known[prompt] for prompt in prompts]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def no_prompts(self, count: int) -> dict[str, Tensor]:
        return self.read_prompts([""] * count)

    @torch.no_grad()
    def to_images(self, latents: Tensor) -> list[Image.Image]:
        vae, images = self.pipeline.vae, []
        for one in latents:  # one at a time: a VAE's memory is large
            scaled = one.unsqueeze(0) / vae.config.scaling_factor + self._shift
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
            found.append(((latent - self._shift) * vae.config.scaling_factor)[0].float())
        return torch.stack(found)

    @property
    def _shift(self) -> float:
        return float(self.pipeline.vae.config.shift_factor or 0.0)

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        said = {"pipeline": self.path, "image_size": self.image_size, **self.saved}
        Path(folder, SAVED).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def check_size(path: str, size: int, multiple: int, largest: int | None = None) -> None:
    """ModelFault for images that the pipeline cannot make."""
    if size % multiple or (largest is not None and size > largest):
        most = "" if largest is None else f", at most {largest}"
        raise ModelFault(
            f"{path}: images of {size} pixels a side cannot be made; take a multiple of {multiple}{most}"
        )
