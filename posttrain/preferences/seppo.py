"""SePPO, semi-policy preference optimisation. Zhang et al. 2024, https://arxiv.org/abs/2410.05255

Against DPO: the loser is no human judgement but a sample of a past checkpoint, which is also the
reference; and where the policy explains the winner less well than that checkpoint does, the sample counts
as good and is pulled up with the winner (the anchor-based adaptive flipper). Against SPIN: the checkpoint
is drawn from all past ones, not the latest.

The paper is about diffusion models; this is its form for language models, with the error difference
replaced by the implicit reward R(y) = log pi(y) - log pi_ref(y), the step by which Diffusion-DPO follows
from DPO:
    s = +1 if R(winner) >= 0 else -1 (no gradient),  L = -log sigma(beta * [R(winner) - s * R(sample)])
Departures: ties count as +1 (the first step of a round whose checkpoint is the policy itself is one big
tie, and a sign of 0 would delete the sample's term); a dead-band around the tie, off by default.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import logsigmoid

from posttrain.preferences.base import PairBatch, PairLoss
from posttrain.settings import RunView

_FLIPPED = {"sign": -1.0, "indicator": 0.0, "none": 1.0}


def flip_sign(winner_margin: Tensor, *, flip: str = "sign", deadband: float = 0.0) -> Tensor:
    """s of each pair, from R(winner) and without gradient. (B,) -> (B,).

    +1 where winner_margin >= -deadband (ties included), else -1 ("sign"), 0 ("indicator") or +1 ("none").
    """
    if flip not in _FLIPPED:
        raise ValueError(f"SePPO: no flip {flip!r}; choose one of {sorted(_FLIPPED)}")
    if deadband < 0:
        raise ValueError(f"SePPO: deadband is a half-width in nats, at least 0, not {deadband}")
    kept = torch.ones_like(winner_margin, requires_grad=False)
    return torch.where(winner_margin.detach() < -deadband, _FLIPPED[flip] * kept, kept)


def signed_pair_loss(winner_margin: Tensor, sample_margin: Tensor, sign: Tensor, *, beta: float) -> Tensor:
    """-log sigma(beta * [R(winner) - s * R(sample)]). (B,) each -> (B,)."""
    return -logsigmoid(beta * (winner_margin - sign * sample_margin))


def seppo_loss(
    *,
    winner_logps: Tensor,
    sample_logps: Tensor,
    ref_winner_logps: Tensor,
    ref_sample_logps: Tensor,
    beta: float,
    flip: str = "sign",
) -> Tensor:
    """SePPO on winners and samples of the reference. (B,) each -> (B,); flip "none" is SPIN's loss."""
    winner_margin = winner_logps - ref_winner_logps
    sample_margin = sample_logps - ref_sample_logps
    return signed_pair_loss(winner_margin, sample_margin, flip_sign(winner_margin, flip=flip), beta=beta)


@dataclass(frozen=True)
class SePPO(PairLoss):
    """SePPO for language models; `beta` is the trainer's."""

    needs_columns: ClassVar[tuple[str, ...]] = ("chosen",)
    in_stages: ClassVar[bool] = True

    rounds: Annotated[int, Gt(0)] = 7
    """K"""
    steps_per_round: Annotated[int, Gt(0)] = 30
    """optimizer steps between two checkpoints of the pool"""
    reference: Literal["initial", "latest", "random"] = "random"
    """r ~ U{0, ..., k-1}"""
    flip: Literal["sign", "indicator", "none"] = "sign"
    """s in {+1, -1}, {1, 0} or always +1"""
    deadband: Annotated[float, Ge(0)] = 0.0
    """tau, nats: a winner margin this close to 0 is a tie"""

    @property
    def draws_answers(self) -> bool:
        return True

    @property
    def total_steps(self) -> int:
        return self.rounds * self.steps_per_round

    def faults(self, run: RunView) -> Iterator[str]:
        yield from run.refused_train(
            {
                "disable_dropout": "the sign of a pair is read from dropout-free forwards",
                "precompute_ref_log_probs": "a round reads each pair about once",
                "sync_ref_model": "the reference of a round is a checkpoint of the pool",
            }
        )
        steps, most = self.total_steps, run.train.max_steps
        product = f"rounds x steps_per_round = {steps}"
        if most is None:
            yield f"train: {product} is how long method '{run.method}' runs: write max_steps: {steps}, not epochs"
        elif most != steps:
            yield f"train: max_steps is {most}, but {product}; make them agree"

    def pair_loss(self, batch: PairBatch) -> Tensor:
        return signed_pair_loss(
            batch.chosen_margin, batch.rejected_margin, self._sign(batch), beta=batch.beta
        )

    def metrics(self, batch: PairBatch) -> dict[str, Tensor]:
        return {
            "flip_rate": (self._sign(batch) < 1).to(batch.chosen_logps.dtype),
            "winner_margin": batch.chosen_margin.detach(),
            "sample_margin": batch.rejected_margin.detach(),
        }

    def _sign(self, batch: PairBatch) -> Tensor:
        return flip_sign(batch.chosen_margin, flip=self.flip, deadband=self.deadband)
