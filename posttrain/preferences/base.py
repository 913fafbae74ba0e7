"""What a preference method is: the batch of pairs it reads and the loss per pair it returns.

Shapes: B pairs. A log-prob is that of a whole answer given its prompt, summed over the answer's tokens (end
token included, prompt and padding not), in nats and at least float32: half precision loses whole nats over a
few hundred tokens. As for objectives, a method knows no trainer, no rank and no logger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pydantic.dataclasses
import torch
from torch import Tensor

from posttrain.settings import Settings


@dataclass(frozen=True)
class PairBatch:
    """One micro-batch of B pairs as the loss sees it; every tensor (B,).

    chosen_logps, rejected_logps          log pi_theta of the answers, with gradient in the training forward
    ref_chosen_logps, ref_rejected_logps  the same under the frozen reference
    chosen_lengths, rejected_lengths      scored tokens of the answers, at least 1
    beta                                  strength of the pull to the reference (the trainer's `beta`)
    imitation_logps, imitation_lengths    answers to imitate that are not the chosen ones, or None
    """

    chosen_logps: Tensor
    rejected_logps: Tensor
    ref_chosen_logps: Tensor
    ref_rejected_logps: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    beta: float = 0.1
    imitation_logps: Tensor | None = None
    imitation_lengths: Tensor | None = None

    def __post_init__(self) -> None:
        if self.chosen_logps.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"PairBatch: log-probs of answers in {self.chosen_logps.dtype}; sum them in float32 or wider"
            )
        shapes = {name: tuple(value.shape) for name, value in vars(self).items() if isinstance(value, Tensor)}
        if any(shape != tuple(self.chosen_logps.shape) or len(shape) != 1 for shape in shapes.values()):
            raise ValueError(f"PairBatch: every tensor must be (B,) of one B, got {shapes}")

    @property
    def chosen_margin(self) -> Tensor:
        """log pi_theta - log pi_ref of the chosen answer. (B,)."""
        return self.chosen_logps - self.ref_chosen_logps

    @property
    def rejected_margin(self) -> Tensor:
        """log pi_theta - log pi_ref of the rejected answer. (B,)."""
        return self.rejected_logps - self.ref_rejected_logps


@dataclass(frozen=True)
class Imitation:
    """Answers to imitate other than the chosen ones.

    file  of rows with prompt and completion; None: the reference's own, sampled once before training
    """

    file: str | None = None


@pydantic.dataclasses.dataclass(frozen=True)
class PairLoss(Settings):
    """Base of every method that learns from pairs. Subclasses override what differs from the defaults."""

    needs_reference: ClassVar[bool] = True
    """False: reference log-probs are not computed, and the batch carries zeros in their place."""

    def imitates(self) -> Imitation | None:
        """Whose answers `PairBatch.imitation_logps` are to be of; None: nobody's, it stays empty."""
        return None

    def pair_loss(self, batch: PairBatch) -> Tensor:
        """The loss of each pair, to be averaged over the pairs of the optimizer step. (B,)."""
        raise NotImplementedError  # every method defines its own

    def rewards(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """The implicit rewards of chosen and rejected answers, each (B,), in the units the loss compares."""
        return batch.beta * batch.chosen_margin, batch.beta * batch.rejected_margin

    def metrics(self, batch: PairBatch) -> dict[str, Tensor]:
        """Values a pair (B,) worth logging; the trainer averages over pairs and names them `METHOD/key`."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Running statistics to checkpoint; no method of today keeps any."""
        return {}
