"""What stands around a velocity model: prompts to conditions, images to latents and back. It is never trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

Conditions = Mapping[str, Tensor]
"""Keyword arguments of the velocity model beside latents and times, a row each."""


class ImageFrame(Protocol):
    """shift  of the schedule (ops.flow_step.sigma_schedule); latent_shape  of one image, (C, H, W)

    The velocity model it belongs to is a module called as model(latents (B, C, H, W), times (B,), **conditions), which
    gives the velocity (B, C, H, W).
    """

    shift: float
    latent_shape: tuple[int, ...]

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
