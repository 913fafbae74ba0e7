"""RPO, regularised preference optimisation. Liu et al. 2024, https://arxiv.org/abs/2405.16436

Against DPO: an imitation term, eta * beta * E_base[-log pi(a)] (eq. 4.8), keeps the likelihood of answers
that a baseline policy covers from sinking; the baseline is the chosen answers in the paper's experiments
(Remark 5.4). beta scales the whole gradient, eta turns it.

Three losses carry this name. "cumulative" is the paper's: the sum over tokens, with the factor eta * beta.
"average" is its authors' later form: the mean over an answer's tokens, weighted by eta alone. "token_mean"
is what TRL calls RPO: the mean over all tokens of the micro-batch, weighted by eta alone. An eta means
something else in each.
Departures: none. The baseline may also be samples of the reference or another dataset, which the theory
allows.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from annotated_types import Ge
from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.preferences.base import Imitation, PairBatch, PairLoss
from posttrain.preferences.dpo import dpo_loss
from posttrain.preferences.sft import length_mean_nll, sequence_nll, token_mean_nll


def imitation_loss(
    logps: Tensor, *, beta: float, eta: float, form: str = "cumulative", lengths: Tensor | None = None
) -> Tensor:
    """The imitation term of answers with log-probs `logps`. (B,) -> (B,).

    "cumulative": -eta * beta * log pi (eq. 4.8). "average": -eta * log pi / length. "token_mean": the same number
    for every answer, -eta * sum of log pi / sum of lengths. Any other form is a ValueError.
    """
    if form == "cumulative":
        return eta * beta * sequence_nll(logps)
    if form not in ("average", "token_mean"):
        raise ValueError(f"RPO: no form {form!r}; choose cumulative, average or token_mean")
    if lengths is None:
        raise ValueError(f"RPO: form {form!r} divides by the answers' lengths in tokens; pass them")
    if form == "average":
        return eta * length_mean_nll(logps, lengths)
    return eta * token_mean_nll(logps, lengths).expand_as(logps)


def rpo_loss(
    *,
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float,
    eta: float,
    form: str = "cumulative",
    chosen_lengths: Tensor | None = None,
) -> Tensor:
    """DPO with imitation of the chosen answers (eq. 4.8). (B,) each -> (B,); eta 0 is DPO.

    chosen_lengths  scored tokens of the chosen answers; forms "average" and "token_mean" need them
    """
    loss = dpo_loss(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        ref_chosen_logps=ref_chosen_logps,
        ref_rejected_logps=ref_rejected_logps,
        beta=beta,
    )
    return loss + imitation_loss(chosen_logps, beta=beta, eta=eta, form=form, lengths=chosen_lengths)


@dataclass(frozen=True)
class RPO(PairLoss):
    """RPO; `beta` is the trainer's: 0.01 in the paper's beta series, 0.05 in its Gemma series."""

    names_files: ClassVar[tuple[str, ...]] = ("imitation_data",)
    fixed_on_resume: ClassVar[tuple[str, ...]] = ("imitate",)
    reads_columns: ClassVar[tuple[str, ...]] = ("imitation", "imitation_prompt")

    eta: Annotated[float, Ge(0)] = 0.005
    """eta; the average form wants about 0.2"""
    form: Literal["cumulative", "average", "token_mean"] = "cumulative"
    """which of the three losses of this name"""
    imitate: Literal["chosen", "reference", "dataset"] = "chosen"
    """pi_base: whose answers are imitated"""
    imitation_data: str | None = None
    """for imitate "dataset": a file of rows with prompt and completion"""

    def __post_init__(self) -> None:
        if (self.imitate == "dataset") != (self.imitation_data is not None):
            raise ValueError("RPO: imitate 'dataset' and imitation_data go together; set both or neither")

    def imitates(self) -> Imitation | None:
        return None if self.imitate == "chosen" else Imitation(file=self.imitation_data)

    @property
    def draws_answers(self) -> bool:
        return self.imitate == "reference"

    def pair_loss(self, batch: PairBatch) -> Tensor:
        loss = dpo_loss(
            chosen_logps=batch.chosen_logps,
            rejected_logps=batch.rejected_logps,
            ref_chosen_logps=batch.ref_chosen_logps,
            ref_rejected_logps=batch.ref_rejected_logps,
            beta=batch.beta,
        )
        logps, lengths = self._imitated(batch)
        return loss + imitation_loss(logps, beta=batch.beta, eta=self.eta, form=self.form, lengths=lengths)

    def metrics(self, batch: PairBatch) -> dict[str, Tensor]:
        logps, lengths = self._imitated(batch)
        return {"imitation_nll_per_token": length_mean_nll(logps, lengths)}

    def _imitated(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Log-probs and lengths of the answers to imitate, (B,) each."""
        if self.imitate == "chosen":
            return batch.chosen_logps, batch.chosen_lengths
        if batch.imitation_logps is None or batch.imitation_lengths is None:
            raise ValueError(
                f"RPO: imitate {self.imitate!r} needs answers to imitate beside the pairs; none came"
            )
        return batch.imitation_logps, batch.imitation_lengths
