"""Sections of recipes that train flow models of images: what stands otherwise in `model` and `rollout`. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import Field, model_validator

from posttrain.recipe.sections import Count, ModelSection, Section, Seed, Text


class FlowScratchSection(Section):
    """A small flow model with random weights, of images of named classes; nothing is downloaded."""

    architecture: Literal["flow_mlp"] = "flow_mlp"
    image_size: Annotated[int, Ge(1), Le(256)] = 8  # pixels a side
    channels: Literal[1, 3] = 1  # 1: grey, 3: red, green and blue
    classes: Annotated[list[Text], MinLen(1)] = [str(digit) for digit in range(10)]  # a prompt is one of them
    hidden_size: Annotated[int, Ge(2), Le(2**14)] = 256
    layers: Annotated[int, Ge(1), Le(100)] = 4
    shift: Annotated[float, Gt(0), Le(100)] = 1.0  # of the schedule: above 1, more steps at high noise
    seed: Seed = 0

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        if self.hidden_size % 2:
            raise ValueError(f"hidden_size ({self.hidden_size}) must be even: times are embedded in pairs")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must hold each name once")
        return self


class FlowModelSection(ModelSection):
    """A folder of a model of images: one that a run here has saved, or a pipeline of diffusers."""

    scratch: FlowScratchSection | None = Field(default=None)  # type: ignore[assignment]  # another kind of model
    image_size: Annotated[int, Ge(8), Le(4096)] | None = None  # of a pipeline; None: the size it was made for
    embedded_guidance: Annotated[float, Ge(0), Le(100)] | None = (
        None  # what a distilled network is told (Flux.1-dev); None: 3.5
    )

    @model_validator(mode="after")
    def _no_text(self) -> Self:
        for name in ("tokenizer", "attn_implementation", "quantization", "mask"):
            if name in self.changed():
                raise ValueError(f"'{name}' has no effect on a model of images; remove it")
        if self.image_size is not None and self.scratch is not None:
            raise ValueError("'image_size' is of a pipeline; write scratch.image_size")
        if self.embedded_guidance is not None and self.scratch is not None:
            raise ValueError("'embedded_guidance' is of a pipeline whose network embeds one; remove it")
        return self


class FlowRolloutSection(Section):
    """How images are made: with noise in each step where they are trained on, without where they are measured."""

    engine: Literal["flow"] = "flow"
    group_size: Annotated[int, Ge(1), Le(2**16)] = 24  # G, images of one prompt
    denoising_steps: Annotated[int, Ge(2), Le(1000)] = 10  # T, of the images that are trained on
    eval_denoising_steps: Annotated[int, Ge(1), Le(1000)] = 40  # without noise, for held-out images
    sampler: Literal["sde", "cps"] = "sde"
    noise_level: Annotated[float, Gt(0), Le(10)] = 0.7  # a
    cfg_scale: Annotated[float, Ge(1), Le(100)] = 1.0  # guidance; 1: none
    sampler_rows: Count = 64  # images made at a time

    @property
    def resample(self) -> Any:
        """Dynamic sampling is of texts."""
        return None

    @property
    def logged(self) -> Any:
        """So are logged answers."""
        return None

    @model_validator(mode="after")
    def _cps_level(self) -> Self:
        if self.sampler == "cps" and self.noise_level > 1:
            raise ValueError(
                f"noise_level {self.noise_level:g}: with sampler cps, 1 is all of the noise drawn anew; write at most 1"
            )
        return self
