"""Supervised fine-tuning of a masked-diffusion model: the ELBO of given responses. LLaDA,
https://arxiv.org/abs/2502.09992, eq. 5

    loss = -(1/B) sum_b l(y_b; t_b, mask_b) / L_b,        one random t and mask a response and step

The prompt is never hidden. As in LLaDA's fine-tuning the response is filled up with end tokens, which are hidden and
scored like the rest: that is how the model learns to end within a canvas of fixed length. So `canvas_length` should
be the rollout's max_new_tokens when reinforcement learning is to follow.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Lt
from pydantic.dataclasses import dataclass

from posttrain.settings import Settings


@dataclass(frozen=True)
class MaskedSFT(Settings):
    """The recipe's `objective` section."""

    masked_diffusion: ClassVar[bool] = True
    fixed_on_resume: ClassVar[tuple[str, ...]] = ("tail", "canvas_length")

    noise: Literal["bernoulli", "count"] = "bernoulli"
    """how t and the hidden tokens are drawn"""
    t_floor: Annotated[float, Ge(0), Lt(1)] = 1e-3
    """smallest t of bernoulli noise"""
    tail: Literal["fill", "drop"] = "fill"
    """what stands behind the first end token"""
    canvas_length: Annotated[int, Ge(1)] | None = None
    """response columns; None: the longest response of the batch"""
    length_normalise: bool = True
    """divide each response's term by its scored tokens"""
