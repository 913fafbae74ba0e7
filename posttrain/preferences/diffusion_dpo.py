"""Diffusion-DPO: DPO on pairs of images. Wallace et al. 2023, https://arxiv.org/abs/2311.12908

An image has no log-prob that can be computed, but at one time and noise a denoiser's squared error stands for a bound
of it. With e the policy's error on a noised image, e_ref the frozen reference's, and R = e_ref - e, how much better
the policy denoises it:
    L = -log sigma(beta / 2 * [R(winner) - R(loser)])                                        (the paper's eq. 14)
beta is the released code's: errors are means over the latent's elements and half of beta multiplies them, so beta
stands for 2 beta T omega(lambda_t) D of the paper, whose errors are sums over D elements. Omega is constant.

All kinds of error are of one model, a velocity v(x, t) on the straight line x = (1 - t) image + t noise:
    velocity      |v - (noise - image)|^2                 the flow form
    epsilon       |(x + (1 - t) v) - noise|^2             of the noise that v says: (1 - t)^2 times the first
    v_prediction  of sqrt(a) noise - sqrt(1 - a) image    ((1 - t)^2 + t^2) times the first
With `times: ddpm` the epsilon form is the paper's: a DDPM's point sqrt(a) image + sqrt(1 - a) noise is the line's at
t = sqrt(1 - a) / (sqrt(a) + sqrt(1 - a)), but for its scale (ops/noise_line.py), and t follows from an evenly drawn
step of the model's own schedule; of a flow model, of the schedule that Stable Diffusion 1.5 was trained with.
Departures: no prompt is left out, where the release drops some; an image's latent is the mode of the autoencoder's
Gaussian, where the release draws from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, ClassVar, Literal

import pydantic.dataclasses
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn.functional import logsigmoid

from posttrain.settings import RunView, Settings

TimeLaw = Literal["uniform", "logit_normal", "ddpm"]
ErrorKind = Literal["velocity", "epsilon", "v_prediction"]


@dataclass(frozen=True)
class ErrorBatch:
    """Squared errors of B pairs of noised images, means over elements; every tensor (B,), float32 or wider.

    winner, loser          the policy's, with gradient in the training forward
    ref_winner, ref_loser  the reference's, at the same times and noises
    """

    winner: Tensor
    loser: Tensor
    ref_winner: Tensor
    ref_loser: Tensor

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value.dtype in (torch.float16, torch.bfloat16):
                raise ValueError(
                    f"ErrorBatch: {name} in {value.dtype}, and pairs differ in the fourth decimal; take the mean in "
                    "float32 or wider"
                )
            if value.shape != self.winner.shape or value.dim() != 1:
                raise ValueError(
                    f"ErrorBatch: every tensor must be (B,) of one B, {name} is {tuple(value.shape)}"
                )

    @property
    def winner_margin(self) -> Tensor:
        """R(winner): how much better than the reference the policy denoises it. (B,)"""
        return self.ref_winner - self.winner

    @property
    def loser_margin(self) -> Tensor:
        """R(loser). (B,)"""
        return self.ref_loser - self.loser


def image_pair_loss(winner_margin: Tensor, loser_margin: Tensor, *, beta: float) -> Tensor:
    """-log sigma(beta / 2 * [R(winner) - R(loser)]). (B,) each -> (B,)."""
    return -logsigmoid(beta / 2 * (winner_margin - loser_margin))


@cache
def ddpm_alpha_bars(steps: int = 1000, first: float = 0.00085, last: float = 0.012) -> Tensor:
    """Products of 1 - beta_k, the roots of beta_k evenly spaced: Stable Diffusion's schedule. (steps,), float64."""
    betas = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64).square()
    return torch.cumprod(1 - betas, 0)


def time_on_line(alpha_bar: Tensor) -> Tensor:
    """Where on the straight line image and noise stand in the proportion of a DDPM's point. Any shape -> the same."""
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    return noise / (signal + noise)


def drawn_times(uniform: Tensor, law: str, steps: Tensor | None = None) -> Tensor:
    """Times in [0, 1) from evenly drawn numbers in [0, 1). (B,) -> (B,).

    steps  (K,) times of a model of noise, which `ddpm` draws from; None: those of Stable Diffusion's schedule
    """
    if law == "uniform":
        return uniform
    if law == "logit_normal":
        return torch.special.ndtri(uniform.double().clamp(1e-6, 1 - 1e-6)).sigmoid().to(uniform)
    if law != "ddpm":
        raise ValueError(f"no times {law!r}; choose uniform, logit_normal or ddpm")
    times = (time_on_line(ddpm_alpha_bars()) if steps is None else steps).to(uniform)
    return times[(uniform.double() * len(times)).long().clamp(max=len(times) - 1)]


def noised(clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """The points (1 - t) image + t noise. (B, ...) each, times (B,) -> (B, ...)."""
    t = _as_wide(times, clean)
    return (1 - t) * clean + t * noise


def squared_errors(velocity: Tensor, clean: Tensor, noise: Tensor, times: Tensor, kind: str) -> Tensor:
    """Of velocities at the points of `noised`: means over elements, float32 or wider. (B, ...) each -> (B,)."""
    wide = velocity if velocity.dtype == torch.float64 else velocity.float()
    error = (wide - (noise - clean).to(wide)).square().flatten(1).mean(1)
    if kind == "velocity":
        return error
    rest, gone = (1 - times.to(error)).square(), times.to(error).square()
    if kind == "epsilon":
        return rest * error
    if kind != "v_prediction":
        raise ValueError(f"no error {kind!r}; choose velocity, epsilon or v_prediction")
    return (rest + gone) * error


def _as_wide(times: Tensor, like: Tensor) -> Tensor:
    return times.to(like).view(-1, *[1] * (like.dim() - 1))


@pydantic.dataclasses.dataclass(frozen=True)
class DiffusionDPO(Settings):
    """The recipe's `objective` section."""

    makes_images: ClassVar[bool] = True
    trains_noise_models: ClassVar[bool] = True
    needs_columns: ClassVar[tuple[str, ...]] = ("chosen_image", "rejected_image")

    beta: Annotated[float, Gt(0), Le(1e9)] = 5000.0
    """half of it multiplies differences of mean squared errors: the released code's, thousands where a text's is 0.1"""
    error: ErrorKind = "velocity"
    """of the velocity, of the noise that it says, or of a DDPM's v"""
    times: TimeLaw = "uniform"
    """how t is drawn: evenly, logit_normal as SD3 was trained, or ddpm, from the steps of a model of noise"""
    share_noise: bool = True
    """whether both images of a pair get the same noise"""
    share_time: bool = True
    """whether both images of a pair stand at the same time"""
    sample_steps: Annotated[int, Ge(1), Le(1000)] = 20
    """denoising steps of the images that are made"""

    def faults(self, run: RunView) -> Iterator[str]:
        if self.times == "ddpm" and self.error == "velocity":
            yield (
                f"{run.place}: times: ddpm are those of a model of noise, whose error is epsilon or v_prediction; "
                "write error: epsilon, or other times"
            )

    def pair_loss(self, batch: ErrorBatch) -> Tensor:
        """The loss of each pair, to be averaged over those of the optimizer step. (B,)"""
        return image_pair_loss(batch.winner_margin, batch.loser_margin, beta=self.beta)

    def metrics(self, batch: ErrorBatch) -> dict[str, Tensor]:
        """Values a pair (B,) worth logging."""
        return {
            "accuracy": (batch.winner_margin > batch.loser_margin).to(batch.winner.dtype),
            "winner_error": batch.winner.detach(),
            "winner_margin": batch.winner_margin.detach(),
            "loser_margin": batch.loser_margin.detach(),
        }


def noise_model_fault(settings: DiffusionDPO) -> str | None:
    """Why a model of noise cannot be trained with these settings: it knows the points of its own schedule alone."""
    if settings.times != "ddpm":
        return (
            f"times: {settings.times} are of a flow, and the model is one of noise, which knows the steps of its own "
            "schedule alone; write times: ddpm and error: epsilon (or v_prediction)"
        )
    return None
