"""Models of noise (DDPMs) on the straight line of a flow.

A DDPM's point at step k is z = sqrt(a) image + sqrt(1 - a) noise, a = alpha_bar_k. Divided by sqrt(a) + sqrt(1 - a) it
is the line's point x = (1 - t) image + t noise at t = sqrt(1 - a) / (sqrt(a) + sqrt(1 - a)). So a network that says
the noise, or the v of progressive distillation, says a velocity noise - image there too, and a step of DDIM without
noise (https://arxiv.org/abs/2010.02502, eq. 12 with sigma = 0) is Euler's step on the line.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


@cache
def ddpm_alpha_bars(steps: int = 1000, first: float = 0.00085, last: float = 0.012) -> Tensor:
    """Products of 1 - beta_k, the roots of beta_k evenly spaced: Stable Diffusion's schedule. (steps,), float64."""
    betas = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64).square()
    return torch.cumprod(1 - betas, 0)


def point_weight(alpha_bar: Tensor) -> Tensor:
    """sqrt(a) + sqrt(1 - a): a DDPM's point is the line's times this. Any shape -> the same."""
    return alpha_bar.sqrt() + (1 - alpha_bar).sqrt()


def time_on_line(alpha_bar: Tensor) -> Tensor:
    """Where on the straight line image and noise stand in the proportion of a DDPM's point. Any shape -> the same."""
    return (1 - alpha_bar).sqrt() / point_weight(alpha_bar)


def velocity_of(output: Tensor, point: Tensor, alpha_bar: Tensor, prediction: str) -> Tensor:
    """The velocity noise - image that a DDPM's output says. (B, ...)

    output      (B, ...)  of the network at point * point_weight(alpha_bar)
    point       (B, ...)  on the line
    alpha_bar   (B,)
    prediction  epsilon: the output is the noise; v_prediction: it is sqrt(a) noise - sqrt(1 - a) image
                (https://arxiv.org/abs/2202.00512, appendix D)

    Raises ValueError for another prediction.
    """
    a = alpha_bar.view(-1, *[1] * (point.dim() - 1))
    if prediction == "epsilon":
        return (output - point) * point_weight(a) / a.sqrt()  # (noise - x) / (1 - t)
    if prediction != "v_prediction":
        raise ValueError(f"no prediction {prediction!r}; a network says epsilon or v_prediction")
    signal, noise, whole = a.sqrt(), (1 - a).sqrt(), point * point_weight(a)
    return signal * output + noise * whole - (signal * whole - noise * output)
