"""VRPO-OL, the online form of VRPO. Zhu et al. 2025 (LLaDA 1.5), https://arxiv.org/abs/2505.19223, made
online in BGPO, https://arxiv.org/abs/2510.11683, eq. 6 and 7.

Against GRPO: one ratio per response, exp of the difference of its ELBO estimates under the new and the old
policy on the same hidden tokens; no clip, no KL. Against BGPO: the objective itself and not a bound of it;
biased by O(1/n), since exp stands outside the mean. Departures: memory. The published form keeps the graphs
of all n passes; here a first pass without gradient gives exp(mean d), and one backward a pass then carries it
as a constant. The gradient is the same, for one forward more a pass. The time's floor, standard deviation and
flat groups are as in bgpo.py.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from annotated_types import Ge
from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.objectives.bgpo import bounded_exp
from posttrain.objectives.masked_base import DiffusionBatch, ElboObjective


def vrpo_objective(elbo: Tensor, old_elbo: Tensor, advantages: Tensor) -> Tensor:
    """A exp(mean_j d_j), the objective that BGPO bounds from below (eq. 7). (B, n), (B, n), (B,) -> (B,)."""
    return advantages * bounded_exp((elbo - old_elbo).mean(1))


@dataclass(frozen=True)
class VRPOOL(ElboObjective):
    level: ClassVar[Literal["sequence"]] = "sequence"
    separable: ClassVar[bool] = False

    samples: Annotated[int, Ge(1)] = 4
    """n_t; 2 for code"""

    def losses(self, batch: DiffusionBatch) -> Tensor:  # (B,)
        return -vrpo_objective(batch.terms, batch.old_terms, batch.advantages)
