"""Reward models from pairs. Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, section 3.5

A model with one linear map on its last token's state gives each answer a number, such that the Bradley-Terry
probability of the answer people preferred is high:

    loss = -log sigma(r(chosen) - r(rejected) - margin)  +  center_coef (r(chosen) + r(rejected))^2
           +  lm_coef * mean negative log-likelihood of the chosen answer's tokens

The margin is a column of the data (Llama 2, https://arxiv.org/abs/2307.09288, 3.2.2), 0 where there is none; the second
term keeps rewards around 0 (Eisenstein et al. 2023, https://arxiv.org/abs/2312.09244); the third keeps the
language model alive under the head (Secrets of RLHF, https://arxiv.org/abs/2307.04964, 3.1, beta_rm).
Departures: the head starts at 0, so that the loss starts at log 2, unless the model is a reward model already; an
untied LM head does not learn by the third term.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import logsigmoid

from posttrain.settings import RunView, Settings


def ranking_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """-log sigma(r_chosen - r_rejected - margin). (B,) each -> (B,)."""
    return -logsigmoid(chosen - rejected - margin)


def centring(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(r_chosen + r_rejected)^2: the ranking sees differences alone, nothing else holds their height. (B,)."""
    return (chosen + rejected).square()


@plain_dataclass(frozen=True)
class Reliability:
    """How often the model is right where it is so sure.

    confidence  mean of sigma(|r_chosen - r_rejected|) of each bin's pairs: what the model says
    accuracy    share of them in which the chosen answer has the higher reward, ties counted half: what is
    counts      pairs in each bin
    """

    confidence: list[float]
    accuracy: list[float]
    counts: list[int]

    @property
    def error(self) -> float:
        """Expected calibration error: the distance of the two, a mean over pairs."""
        total = sum(self.counts)
        parts = zip(self.confidence, self.accuracy, self.counts, strict=True)
        return sum(abs(said - was) * count for said, was, count in parts) / total if total else 0.0


def reliability(margins: Tensor, bins: int = 5) -> Reliability:
    """Of r_chosen - r_rejected (N,), in bins of equal width of the confidence, 1/2 to 1; empty bins are left out."""
    margins = margins.double()
    said, right = torch.sigmoid(margins.abs()), correct(margins)
    place = ((said - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    found = Reliability([], [], [])
    for one in range(bins):
        inside = place == one
        if count := int(inside.sum()):
            found.confidence.append(said[inside].mean().item())
            found.accuracy.append(right[inside].mean().item())
            found.counts.append(count)
    return found


def correct(margins: Tensor) -> Tensor:
    """1 where the chosen answer has the higher reward, 1/2 where neither has. (N,) -> (N,)."""
    return (margins > 0).to(margins) + (margins == 0).to(margins) / 2


@dataclass(frozen=True)
class RewardModel(Settings):
    continues_scorers: ClassVar[bool] = True
    reads_columns: ClassVar[tuple[str, ...]] = ("margin",)
    logs: ClassVar[Mapping[str, str]] = {"reward_mean": "mean reward of all answers"}
    panels: ClassVar[Mapping[str, tuple[tuple[str, str], ...]]] = {
        "rewards of the pairs": (("chosen", "chosen"), ("rejected", "rejected")),
    }

    center_coef: Annotated[float, Ge(0)] = 0.0
    """weight of the squared sum of a pair's rewards; 0.01 in the paper"""
    lm_coef: Annotated[float, Ge(0)] = 0.0
    """beta_rm: weight of the chosen answer's negative log-likelihood per token"""

    def reference_copies(self, *, adapter: bool) -> int:
        return 0

    def faults(self, run: RunView) -> Iterator[str]:
        none = "a reward model has no reference"
        keys = ("beta", "precompute_ref_log_probs", "precompute_ref_batch_size", "sync_ref_model")
        reasons = dict.fromkeys((*keys, "ref_model_mixup_alpha", "ref_model_sync_steps"), none)
        yield from run.refused_train(
            {**reasons, "router_aux_loss_coef": "a sequence classifier has no such loss"}
        )
