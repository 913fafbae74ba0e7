"""What stands around a velocity model: prompts to conditions, images to latents and back. It is never trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

Conditions = Mapping[str, Tensor]
"""Keyword arguments of the velocity model beside latents and times, a row each."""


@dataclass(frozen=True)
class DenoisingTimes:
    """The way from noise to an image.

    times  (steps + 1,) falling, float64; 0 last, but for some models of noise
    start  what noise is multiplied by, to stand on the line at times[0]: 1 for a flow
    end    what the last point is multiplied by, to be a latent
    """

    times: Tensor
    start: float = 1.0
    end: float = 1.0


class ImageFrame(Protocol):
    """
    latent_shape  of one image, (C, H, W)
    line_times    (K,) times that a model of noise was trained at (ops.noise_line); None: it is a flow model

    The velocity model it belongs to is a module called as model(latents (B, C, H, W), times (B,), **conditions), which
    gives the velocity (B, C, H, W).
    """

    latent_shape: tuple[int, ...]
    line_times: Tensor | None

    def denoising_times(self, steps: int) -> DenoisingTimes:
        """Of `steps` denoising steps, as the model's own sampler places them."""
        ...

    def place(self, device: Any) -> None:
        """Its frozen parts go to the model's device."""
        ...

    def read_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The prompts' conditions. ValueError for a prompt that it cannot read."""
        ...

    def no_prompts(self, count: int) -> dict[str, Tensor]:
        """The conditions of `count` rows without a prompt, which guidance leads away from."""
        ...

    def to_images(self, latents: Tensor) -> list[Image.Image]: ...

    def to_latents(self, images: Sequence[Image.Image]) -> Tensor: ...

    def save_pretrained(self, folder: str | Path, **_: Any) -> Any:
        """Beside the model's weights, whatever it takes to read the folder again."""
        ...


def rows_of_conditions(conditions: Conditions, rows: slice | Tensor) -> dict[str, Tensor]:
    """The conditions of some of the rows."""
    return {name: values[rows] for name, values in conditions.items()}


def on_device(conditions: Conditions, device: torch.device | str) -> dict[str, Tensor]:
    return {name: values.to(device) for name, values in conditions.items()}


def mixed_conditions(kept: Conditions, instead: Conditions, keep: Tensor) -> dict[str, Tensor]:
    """Of each row `kept` where `keep` (B,) says so, else `instead`."""
    found = {}
    for name, values in kept.items():
        choice = keep.view(-1, *[1] * (values.dim() - 1)).to(values.device)
        found[name] = torch.where(choice, values, instead[name].to(values.device))
    return found
