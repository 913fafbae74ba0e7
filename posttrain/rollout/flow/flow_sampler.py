"""Images from noise: step by step with noise in each step, for training, and without, for measuring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic.dataclasses
import torch
from annotated_types import Ge, Gt
from torch import Tensor

from posttrain.ops.flow_step import (
    StepGaussian,
    cps_step,
    ode_step,
    sde_step,
    step_logprobs,
)
from posttrain.rollout.flow.image_frame import Conditions, DenoisingTimes, ImageFrame, on_device
from posttrain.rollout.flow.row_noise import row_noise
from posttrain.settings import STRICT

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(latents (B, ...), times (B,)) -> velocity, float32."""


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class FlowSampling:
    """The `rollout` section's own settings (recipe.image_sections.FlowRolloutSection)."""

    denoising_steps: Annotated[int, Ge(2)] = 10
    """T, of the images that are trained on"""
    eval_denoising_steps: Annotated[int, Ge(1)] = 40
    """without noise, for held-out images"""
    sampler: Literal["sde", "cps"] = "sde"
    """how noise comes into a step"""
    noise_level: Annotated[float, Gt(0)] = 0.7
    """a"""
    cfg_scale: Annotated[float, Ge(1)] = 1.0
    """guidance; 1: none"""
    sampler_rows: Annotated[int, Ge(1)] = 64
    """images made at a time"""


@dataclass(frozen=True)
class Trajectories:
    """What a rollout keeps of B images for its training; float32, no gradient.

    latents   (B, T + 1, ...)  from noise to the image
    means     (B, T, ...)      of each step, under the policy that sampled
    logprobs  (B, T)           of each step's latent; NaN where the last step has no spread
    """

    latents: Tensor
    means: Tensor
    logprobs: Tensor


class StepRule:
    """The schedule and the kind of step of one run: the same object samples and trains, so that both compute alike.

    times  (denoising_steps + 1,) of a flow
    """

    def __init__(self, sampling: FlowSampling, times: Tensor) -> None:
        self.sampling = sampling
        self.times = times.float()

    def at(self, steps: Tensor, latents: Tensor, velocity: Tensor) -> StepGaussian:
        """The Gaussian of each row's step, `steps` (B,) numbered from 0."""
        times = self.times.to(latents.device)
        time, after = times[steps], times[steps + 1]
        level = self.sampling.noise_level
        if self.sampling.sampler == "cps":
            return cps_step(latents, velocity, time, after, level)
        return sde_step(latents, velocity, time, after, float(self.times[1]), level)

    def time_of(self, steps: Tensor) -> Tensor:
        return self.times.to(steps.device)[steps]


def guided(model: Any, conditions: Conditions, without: Conditions | None, scale: float) -> Velocity:
    """The velocity model with classifier-free guidance: without + scale (with - without), both in one forward pass.

    without  conditions of rows without a prompt; not read at scale 1
    """

    def velocity(latents: Tensor, times: Tensor) -> Tensor:
        if scale == 1.0 or without is None:
            return model(latents, times, **conditions).float()
        both = {name: torch.cat([without[name], values]) for name, values in conditions.items()}
        away, towards = model(latents.repeat(2, *[1] * (latents.dim() - 1)), times.repeat(2), **both).chunk(2)
        return away.float() + scale * (towards.float() - away.float())

    return velocity


@torch.no_grad()
def sample_steps(velocity: Velocity, rule: StepRule, noise: Tensor) -> Trajectories:
    """B images from noise (B, T + 1, ...): the first is where they begin, the others go into the steps. The last step
    of a rule that gives it no spread is its mean."""
    latent, latents, means, logprobs = noise[:, 0], [noise[:, 0]], [], []
    for i in range(rule.sampling.denoising_steps):
        steps = torch.full((len(noise),), i, dtype=torch.long, device=noise.device)
        step = rule.at(steps, latent, velocity(latent, rule.time_of(steps)))
        spread = step.spread.view(-1, *[1] * (latent.dim() - 1))
        latent = step.mean + spread * noise[:, i + 1]
        latents.append(latent)
        means.append(step.mean)
        logprobs.append(step_logprobs(latent, step.mean, step.spread))
    return Trajectories(torch.stack(latents, 1), torch.stack(means, 1), torch.stack(logprobs, 1))


@torch.no_grad()
def sample_plainly(velocity: Velocity, noise: Tensor, way: DenoisingTimes) -> Tensor:
    """B images' latents by Euler's steps, without noise, which of a model of noise are DDIM's: (B, ...) to (B, ...)."""
    times, latent = way.times.to(noise), noise * way.start
    for time, after in zip(times[:-1], times[1:], strict=True):
        here, there = time.expand(len(latent)), after.expand(len(latent))
        latent = ode_step(latent, velocity(latent, here), here, there)
    return latent * way.end


class FlowSampler:
    """Makes the images of a rollout or of an evaluation, some rows at a time.

    seed  with the rollout's number and the row's it says which noise an image has, whatever process makes it
    """

    def __init__(self, frame: ImageFrame, sampling: FlowSampling, device: Any, seed: int) -> None:
        self.frame, self.sampling, self.device, self.seed = frame, sampling, device, seed
        self.rule = StepRule(sampling, frame.denoising_times(sampling.denoising_steps).times)
        frame.place(device)

    def trajectories(
        self, model: Any, prompts: Sequence[str], rows: Sequence[int], rollout: int
    ) -> Trajectories:
        """Of this process's prompts; `rows` are their numbers among all."""
        shape = (self.sampling.denoising_steps + 1, *self.frame.latent_shape)
        parts = []
        for start, velocity in self._in_parts(model, prompts):
            some = rows[start : start + self.sampling.sampler_rows]
            noise = row_noise(shape, some, self.seed, "rollout", rollout).to(self.device)
            parts.append(sample_steps(velocity, self.rule, noise))
        return Trajectories(
            *(torch.cat([vars(part)[name] for part in parts]) for name in ("latents", "means", "logprobs"))
        )

    def held_out(self, model: Any, prompts: Sequence[str], rows: Sequence[int]) -> Tensor:
        """Latents without noise in the steps, from noise that is the same at every evaluation. (B, ...)"""
        made, way = [], self.frame.denoising_times(self.sampling.eval_denoising_steps)
        for start, velocity in self._in_parts(model, prompts):
            some = rows[start : start + self.sampling.sampler_rows]
            noise = row_noise(self.frame.latent_shape, some, self.seed, "evaluation").to(self.device)
            made.append(sample_plainly(velocity, noise, way))
        return torch.cat(made)

    def _in_parts(self, model: Any, prompts: Sequence[str]) -> Any:
        for start in range(0, len(prompts), self.sampling.sampler_rows):
            some = prompts[start : start + self.sampling.sampler_rows]
            yield start, self.velocity(model, some)

    def velocity(self, model: Any, prompts: Sequence[str]) -> Velocity:
        """The guided velocity of these prompts' rows."""
        conditions = on_device(self.frame.read_prompts(prompts), self.device)
        scale = self.sampling.cfg_scale
        without = None if scale == 1.0 else on_device(self.frame.no_prompts(len(prompts)), self.device)
        return guided(model, conditions, without, scale)
