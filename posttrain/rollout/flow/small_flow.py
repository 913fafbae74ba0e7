"""A small flow model of images of named classes, for two CPU cores: residual layers on all pixels as one vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from posttrain.ops.flow_step import sigma_schedule
from posttrain.rollout.flow.image_frame import DenoisingTimes

_SCALE = 1000.0  # times lie in [0, 1]; the embedding's waves are those of a thousand steps


class FlowMLPConfig(PretrainedConfig):
    """As recipe.image_sections.FlowScratchSection; it also says how prompts and pixels are read."""

    model_type = "posttrain_flow_mlp"

    def __init__(
        self,
        image_size: int = 8,
        channels: int = 1,
        classes: Sequence[str] = tuple("0123456789"),
        hidden_size: int = 256,
        layers: int = 4,
        shift: float = 1.0,
        **more: Any,
    ) -> None:
        self.image_size = image_size
        self.channels = channels
        self.classes = list(classes)
        self.hidden_size = hidden_size
        self.layers = layers
        self.shift = shift
        super().__init__(**more)


class FlowMLP(PreTrainedModel):
    """forward(latents (B, C, H, W), times (B,), classes (B,)) -> velocity (B, C, H, W). Class `len(classes)`: none."""

    config_class = FlowMLPConfig
    base_model_prefix = "flow"
    main_input_name = "latents"

    def __init__(self, config: FlowMLPConfig) -> None:
        super().__init__(config)
        pixels, hidden = config.channels * config.image_size**2, config.hidden_size
        self.enter = nn.Linear(pixels, hidden)
        self.time = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.label = nn.Embedding(len(config.classes) + 1, hidden)
        self.blocks = nn.ModuleList(_Block(hidden) for _ in range(config.layers))
        self.leave = nn.Linear(hidden, pixels)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """The layers' own."""

    def get_input_embeddings(self) -> nn.Module:
        return self.label

    def get_output_embeddings(self) -> None:
        """The last layer's outputs are pixels."""

    def forward(self, latents: Tensor, times: Tensor, classes: Tensor) -> Tensor:
        told = self.time(_waves(times, self.config.hidden_size).to(self.enter.weight.dtype)) + self.label(
            classes
        )
        hidden = self.enter(latents.flatten(1).to(self.enter.weight.dtype))
        for block in self.blocks:
            hidden = block(hidden, told)
        return self.leave(hidden).view(latents.shape)


class _Block(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.told = nn.Linear(hidden, 2 * hidden)
        self.wide = nn.Linear(hidden, 2 * hidden)
        self.back = nn.Linear(2 * hidden, hidden)

    def forward(self, hidden: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.told(nn.functional.silu(told)).chunk(2, dim=-1)
        moved = self.norm(hidden) * (1 + scale) + shift
        return hidden + self.back(nn.functional.silu(self.wide(moved)))


def _waves(times: Tensor, width: int) -> Tensor:
    half = width // 2
    rates = torch.exp(-math.log(10_000.0) * torch.arange(half, device=times.device) / half)
    angles = _SCALE * times.float().unsqueeze(1) * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def scratch_flow(seed: int = 0, **sizes: Any) -> FlowMLP:
    """A model with random weights that follow from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FlowMLP(FlowMLPConfig(**sizes))


class ClassFrame:
    """An ImageFrame whose prompts are class names and whose latents are the pixels, from -1 (black) to 1."""

    line_times: Tensor | None = None

    def __init__(self, config: FlowMLPConfig) -> None:
        self.shift = config.shift
        self.latent_shape: tuple[int, ...] = (config.channels, config.image_size, config.image_size)
        self._numbers = {name: number for number, name in enumerate(config.classes)}

    def denoising_times(self, steps: int) -> DenoisingTimes:
        return DenoisingTimes(sigma_schedule(steps, self.shift))

    def place(self, device: Any) -> None:
        """There is nothing to place."""

    def read_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        numbers = []
        for prompt in prompts:
            name = prompt.strip() if isinstance(prompt, str) else prompt
            if name not in self._numbers:
                raise ValueError(
                    f"prompt {prompt!r} is none of the model's classes ({', '.join(self._numbers)}); a model of "
                    "classes reads their names alone"
                )
            numbers.append(self._numbers[name])
        return {"classes": torch.tensor(numbers, dtype=torch.long)}

    def no_prompts(self, count: int) -> dict[str, Tensor]:
        return {"classes": torch.full((count,), len(self._numbers), dtype=torch.long)}

    def to_images(self, latents: Tensor) -> list[Image.Image]:
        pixels = ((latents.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        if self.latent_shape[0] == 1:
            return [Image.fromarray(one[0].numpy(), mode="L") for one in pixels]
        return [Image.fromarray(one.permute(1, 2, 0).numpy(), mode="RGB") for one in pixels]

    def to_latents(self, images: Sequence[Image.Image]) -> Tensor:
        channels, size, _ = self.latent_shape
        found = []
        for image in images:
            plain = image.convert("L" if channels == 1 else "RGB")
            plain = (
                plain if plain.size == (size, size) else plain.resize((size, size), Image.Resampling.BILINEAR)
            )
            values = torch.from_numpy(numpy.asarray(plain, dtype=numpy.float32)).view(size, size, channels)
            found.append(values.permute(2, 0, 1) / 127.5 - 1)
        return torch.stack(found)

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """The model's config says it all."""
