"""Supervised fine-tuning, and the negative log-likelihoods per pair loss may carry, named by what they divide by."""

from __future__ import annotations

from pydantic.dataclasses import dataclass
from torch import Tensor

from posttrain.settings import Settings


@dataclass(frozen=True)
class SFTSettings(Settings):
    """Nothing to set beyond `train`: the loss is the mean negative log-likelihood of the completion's tokens."""


def sequence_nll(logps: Tensor) -> Tensor:
    """Of each whole answer, in nats: long answers weigh more. (B,) -> (B,)."""
    return -logps


def length_mean_nll(logps: Tensor, lengths: Tensor) -> Tensor:
    """Of each answer, a token: every answer weighs the same. (B,), (B,) -> (B,)."""
    return -logps / lengths.clamp(min=1)


def token_mean_nll(logps: Tensor, lengths: Tensor) -> Tensor:
    """A token of the whole micro-batch: every token weighs the same. (B,), (B,) -> ().

    This is the mean that released code (TRL's "sft" loss) takes. It is defined on the micro-batch, so gradients
    depend on how a step is split into micro-batches when answers differ in length.
    """
    return -logps.sum() / lengths.sum().clamp(min=1)
