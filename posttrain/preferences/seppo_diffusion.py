"""SePPO as it was published, for models of images. Zhang et al. 2024, https://arxiv.org/abs/2410.05255

Diffusion-DPO (diffusion_dpo.py) without losing images: the data are winners alone, and the other image of a pair is
sampled from the round's reference, a past checkpoint drawn from all there are. With R = e_ref - e, errors of reference
and policy at one time and noise,
    s = +1 if R(winner) >= 0 else -1 (no gradient),   L = -log sigma(beta / 2 * [R(winner) - s R(sample)])
so where the reference denoises the winner better, its sample is pulled up too (the anchor-based adaptive flipper).
seppo.py is the form for language models; sign and loss are one and the same functions.
Departures: ties count as +1 (the policy is its own reference at the first step of some rounds, and a sign of 0 would
delete the sample's term); a dead-band around the tie, off by default. The paper samples for a round in advance; here a
pair's image is made when the pair is trained on, by the same frozen checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt
from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.preferences.diffusion_dpo import DiffusionDPO, ErrorBatch
from posttrain.preferences.seppo import flip_sign, signed_pair_loss
from posttrain.settings import RunView


@dataclass(frozen=True)
class SePPODiffusion(DiffusionDPO):
    """The recipe's `objective` section."""

    needs_columns: ClassVar[tuple[str, ...]] = ("image",)
    fixed_on_resume: ClassVar[tuple[str, ...]] = ("steps_per_round",)

    rounds: Annotated[int, Gt(0)] = 7
    """K"""
    steps_per_round: Annotated[int, Gt(0)] = 30
    """optimizer steps between two checkpoints of the pool"""
    reference: Literal["initial", "latest", "random"] = "random"
    """r ~ U{0, ..., k-1}"""
    flip: Literal["sign", "indicator", "none"] = "sign"
    """s in {+1, -1}, {1, 0} or always +1"""
    deadband: Annotated[float, Ge(0)] = 0.0
    """tau: a winner's difference of errors this close to 0 is a tie"""
    sample_guidance: Annotated[float, Ge(1)] = 1.0
    """guidance of the reference's samples; 1: none"""

    @property
    def total_steps(self) -> int:
        return self.rounds * self.steps_per_round

    def faults(self, run: RunView) -> Iterator[str]:
        yield from super().faults(run)
        steps, most = self.total_steps, run.train.max_steps
        product = f"rounds x steps_per_round = {steps}"
        if most is None:
            yield f"train: {product} is how long method '{run.method}' runs: write max_steps: {steps}, not epochs"
        elif most != steps:
            yield f"train: max_steps is {most}, but {product}; make them agree"

    def pair_loss(self, batch: ErrorBatch) -> Tensor:
        sign = self._sign(batch)
        return signed_pair_loss(batch.winner_margin, batch.loser_margin, sign, beta=self.beta / 2)

    def metrics(self, batch: ErrorBatch) -> dict[str, Tensor]:
        found = super().metrics(batch)
        del found["accuracy"]  # a sample need not be the worse one
        found["sample_margin"] = found.pop("loser_margin")
        return {"flip_rate": (self._sign(batch) < 1).to(batch.winner.dtype), **found}

    def _sign(self, batch: ErrorBatch) -> Tensor:
        return flip_sign(batch.winner_margin, flip=self.flip, deadband=self.deadband)
