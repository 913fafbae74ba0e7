"""DRIFT, dissatisfaction-refined iterative preference training. https://arxiv.org/abs/2510.02341

Against DPO on fixed pairs: the rejected answers are logged ones that a user complained about, the chosen
ones are sampled anew in each iteration from the policy itself, shown the complaint; the loss then sees the
prompt without the complaint, and its reference is the policy at the start of the iteration.
Against SPIN: there the good answer is fixed and the bad one sampled; here it is the other way round.

The loss here is DPO plus `nll_weight` times the token-mean NLL of the chosen answers, which is in the
released configs but not in the paper. The loop stands in posttrain/trainers/staged/drift.py.
Departures: by default the released code's quirks are corrected (see `compat`) and pairs whose two answers
are equal, whose gradient is zero, are dropped and counted. Filters of sampled answers are off by default,
as published.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt
from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.preferences.base import PairBatch, PairLoss
from posttrain.preferences.dpo import dpo_loss
from posttrain.preferences.sft import length_mean_nll, token_mean_nll
from posttrain.settings import RunView


@dataclass(frozen=True)
class DRIFT(PairLoss):
    """DRIFT's settings and the loss of one iteration; `beta` is the trainer's (released configs: 0.1)."""

    needs_columns: ClassVar[tuple[str, ...]] = ("rejected", "user_preference")
    writes_plain_lines: ClassVar[bool] = True
    in_stages: ClassVar[bool] = True
    names_files: ClassVar[tuple[str, ...]] = ("seed_data",)

    iterations: Annotated[int, Gt(0)] = 2
    """K of the main table"""
    nll_weight: Annotated[float, Ge(0)] = 0.001
    """released configs' rpo_alpha; 0 is the paper's loss"""
    guided: bool = True
    """False: chosen ~ pi(. | x) without the complaint, the paper's ablation"""
    compat: Literal["corrected", "reference"] = "corrected"
    """"reference" repeats the released code's quirks"""
    seed_data: str | None = None
    """logged repairs for the warm start: a file with prompt, chosen, rejected"""
    seed_epochs: Annotated[int, Gt(0)] = 3
    """epochs over the seed pairs, when there are any"""
    holdout_rows: Annotated[int, Ge(0)] = 0
    """first rows of the file kept out of training; the release holds out 100"""
    drop_identical: bool = True
    """pairs with equal answers; "reference" keeps them"""
    drop_empty: bool = False
    """sampled answers without text"""
    drop_apologies: bool = False
    """sampled answers that open by apologising, a trace of the hidden complaint"""

    @property
    def draws_answers(self) -> bool:
        return True

    @property
    def stages(self) -> str:
        counted = "1 iteration" if self.iterations == 1 else f"{self.iterations} iterations"
        return counted if self.seed_data is None else f"{counted} after a seed stage"

    def faults(self, run: RunView) -> Iterator[str]:
        yield from run.refused_train(
            {"sync_ref_model": "the reference of an iteration is the policy at its start"}
        )

    def pair_loss(self, batch: PairBatch) -> Tensor:
        loss = dpo_loss(
            chosen_logps=batch.chosen_logps,
            rejected_logps=batch.rejected_logps,
            ref_chosen_logps=batch.ref_chosen_logps,
            ref_rejected_logps=batch.ref_rejected_logps,
            beta=batch.beta,
        )
        return loss + self.nll_weight * token_mean_nll(batch.chosen_logps, batch.chosen_lengths)

    def metrics(self, batch: PairBatch) -> dict[str, Tensor]:
        return {"chosen_nll_per_token": length_mean_nll(batch.chosen_logps, batch.chosen_lengths)}
