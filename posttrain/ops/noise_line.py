"""Models of noise (DDPMs) on the straight line of a flow.

A DDPM's point at step k is z = sqrt(a) image + sqrt(1 - a) noise, a = alpha_bar_k. Divided by sqrt(a) + sqrt(1 - a) it
is the line's point x = (1 - t) image + t noise at t = sqrt(1 - a) / (sqrt(a) + sqrt(1 - a)). So a network that says
the noise, or the v of progressive distillation, says a velocity noise - image there too, and a step of DDIM without
noise (https://arxiv.org/abs/2010.02502, eq. 12 with sigma = 0) is Euler's step on the line.
"""

from __future__ import annotations

from torch import Tensor


def point_weight(alpha_bar: Tensor) -> Tensor:
    """sqrt(a) + sqrt(1 - a): a DDPM's point is the line's times this. Any shape -> the same."""
    return alpha_bar.sqrt() + (1 - alpha_bar).sqrt()


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
