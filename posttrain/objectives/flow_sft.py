"""Flow matching. Lipman et al. 2023, https://arxiv.org/abs/2210.02747, in the rectified form of Liu et al. 2023,
https://arxiv.org/abs/2209.03003

A point on the straight line between an image's latent and noise, x_t = (1 - t) x_0 + t noise, and the squared distance
of the model's velocity there to the line's own, noise - x_0: the mean over elements and rows.
Departures: none. With `condition_dropout` some rows lose their prompt, which guidance needs of a model.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le, Lt
from pydantic.dataclasses import dataclass

from posttrain.settings import Settings


@dataclass(frozen=True)
class FlowSFT(Settings):
    """The recipe's `objective` section."""

    makes_images: ClassVar[bool] = True
    needs_columns: ClassVar[tuple[str, ...]] = ("image",)

    times: Literal["uniform", "logit_normal"] = "uniform"
    """how t is drawn: evenly, or the logistic of a normal number, as SD3 was trained"""
    condition_dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    """share of rows whose prompt is left out"""
    sample_steps: Annotated[int, Ge(1), Le(1000)] = 20
    """denoising steps of the held-out images of the report"""
