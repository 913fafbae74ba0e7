"""KTO, Kahneman-Tversky optimisation. Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306

Against DPO: no pairs. Each answer is marked good or bad, and its log-ratio to the reference is valued against a
reference point z_0 by a logistic curve, as people value gains and losses (eq. 8):

    loss = lambda_D (1 - sigma(beta (r - z_0)))   of a good answer,   r = log pi_theta(y|x) - log pi_ref(y|x)
           lambda_U (1 - sigma(beta (z_0 - r)))   of a bad one

z_0 is the divergence of the policy from the reference, estimated as max(0, mean r) over prompts with answers to other
prompts, without gradient. The paper writes lambda_y - v(x, y), which is this.

`reference_point: zero` is the unpaired form of APO-zero (D'Oosterlinck et al. 2024, https://arxiv.org/abs/2408.06266,
eq. 7; TRL's "apo_zero_unpaired"), and what the paper allows where the reference was fine-tuned on the same answers.
Departures: z_0 is one number of the optimizer step, over all its micro-batches and ranks, where the paper has one for
each micro-batch; and a row's mismatched answer is drawn once from all rows, not from its micro-batch. So the gradient
does not depend on how a step is split, and rows can be shuffled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.settings import RunView, Settings

BALANCED = (1.0, 1.5)
"""lambda_D n_D / (lambda_U n_U) as the paper asks for it (eq. 9); its first version said 4/3 for the upper end."""
CLOSE = 0.05
"""A share by which a balance may miss the range before it is worth a word: no data set is cut to the row."""


def kto_loss(
    logratios: Tensor,
    good: Tensor,
    *,
    reference_point: Tensor | float,
    beta: float,
    good_weight: float = 1.0,
    bad_weight: float = 1.0,
) -> Tensor:
    """The loss of each answer (eq. 8). (B,), (B,) -> (B,).

    logratios        log pi_theta - log pi_ref of whole answers, in nats
    good             true where the answer was marked good
    reference_point  z_0, () or a number; no gradient flows through it
    """
    point = torch.as_tensor(reference_point, dtype=logratios.dtype, device=logratios.device).detach()
    above = torch.where(good, logratios - point, point - logratios)
    weight = torch.full_like(logratios, bad_weight).masked_fill(good, good_weight)
    return weight * torch.sigmoid(-beta * above)


def estimated_point(total: Tensor, count: Tensor) -> Tensor:
    """z_0 from the sum of log-ratios of mismatched answers and their number: max(0, mean), no gradient. () -> ()."""
    return (total / count.clamp(min=1)).clamp(min=0).detach()


def balance(good: int, bad: int, good_weight: float = 1.0, bad_weight: float = 1.0) -> float:
    """lambda_D n_D / (lambda_U n_U): how much more the good answers weigh in all than the bad ones."""
    below = bad_weight * bad
    return good_weight * good / below if below else math.inf


@dataclass(frozen=True)
class KTO(Settings):
    """KTO; `beta` is the trainer's: 0.1 in the paper."""

    needs_columns: ClassVar[tuple[str, ...]] = ("completion", "label")
    marked_answers: ClassVar[bool] = True
    settings_in_trl: ClassVar[Mapping[str, str]] = {
        "desirable_weight": "good_weight",
        "undesirable_weight": "bad_weight",
    }
    logs: ClassVar[Mapping[str, str]] = {
        "reference_point": "z_0, in nats",
        "mismatched_margin": "mean log-ratio of mismatched answers, before it is held at 0",
        "good_share": "share of the rows that are marked good",
    }
    panels: ClassVar[Mapping[str, tuple[tuple[str, str], ...]]] = {
        "reference point (nats)": (("reference_point", "z_0"), ("mismatched_margin", "before the clamp")),
    }

    good_weight: Annotated[float, Ge(0)] = 1.0
    """lambda_D, weight of answers marked good"""
    bad_weight: Annotated[float, Ge(0)] = 1.0
    """lambda_U, weight of answers marked bad"""
    reference_point: Literal["mismatched", "zero"] = "mismatched"
    """z_0: estimated on answers to other prompts, or 0 (APO-zero's unpaired form), which saves two forward passes"""

    def __post_init__(self) -> None:
        if not self.good_weight and not self.bad_weight:
            raise ValueError(
                "KTO: good_weight and bad_weight are both 0, so nothing would be learned; raise one"
            )

    def faults(self, run: RunView) -> Iterator[str]:
        if self.reference_point == "mismatched" and run.train.per_device_train_batch_size < 2:
            yield (
                "train: 'per_device_train_batch_size' is 1, and TRL's trainer takes 2 or more where a reference point "
                "is estimated; raise it, or write objective.reference_point: zero"
            )

    def row_facts(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        good, bad = marks_of(rows)
        found = balance(good, bad, self.good_weight, self.bad_weight)
        yield f"marked good {good}, bad {bad}; good_weight x good / (bad_weight x bad) = {found:.3g}"

    def row_warnings(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        good, bad = marks_of(rows)
        yield from balance_warnings(good, bad, self.good_weight, self.bad_weight)


def marks_of(rows: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """How many rows are marked good, and how many bad."""
    good = sum(bool(row["label"]) for row in rows)
    return good, len(rows) - good


def balance_warnings(good: int, bad: int, good_weight: float, bad_weight: float) -> Iterator[str]:
    """A sentence where the two kinds of answers weigh otherwise than the paper asks for."""
    if not good or not bad:
        kind, other = ("good", "bad") if good else ("bad", "good")
        yield f"all {good + bad} answers are marked {kind}: nothing says what a {other} one is; give some of both"
        return
    found = balance(good, bad, good_weight, bad_weight)
    low, high = BALANCED
    if low * (1 - CLOSE) <= found <= high * (1 + CLOSE):
        return
    if found < low:
        ends = (bad_weight * bad / good * low, bad_weight * bad / good * high)
        remedy = f"objective.good_weight of {ends[0]:.3g} to {ends[1]:.3g}"
    else:
        ends = (good_weight * good / bad / high, good_weight * good / bad / low)
        remedy = f"objective.bad_weight of {ends[0]:.3g} to {ends[1]:.3g}"
    yield (
        f"{good} answers are marked good and {bad} bad: good_weight x good / (bad_weight x bad) is {found:.3g}, and "
        f"the paper asks for {low:g} to {high:g} (eq. 9): {remedy}"
    )
