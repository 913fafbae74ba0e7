"""What an objective for masked-diffusion models is: the sibling of `Objective` whose data are forward passes.

A masked-diffusion model has no per-token log-prob of its own response; it has n forward passes, each on
another set of hidden tokens (see ops/masked_elbo.py). So the loss reads *terms*: one number a pass, the ELBO
term l, or one a pass and token. Advantages come from whole groups as for every other method.

Two ways of spending memory on one pass only:
    separable  the loss is a sum over passes, each reading its own term: one backward a pass (BGPO)
    joint      the loss needs all terms at once: a first pass without gradient gives the loss's derivative with
               respect to each term, and each backward then carries `derivative * term`. Exact, because the
               chain rule asks for nothing else of the other passes.
Which one it is, is the class's flag `separable`; `term_coefficients` is the derivative.

Shapes: B responses, n passes at hand, L response tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import pydantic.dataclasses
import torch
from annotated_types import Ge, Lt
from torch import Tensor

from posttrain.objectives.base import Groups, Objective, StepTotals, TokenBatch
from posttrain.ops.groups import degenerate_groups, group_centered
from posttrain.ops.masked_elbo import Noise, sample_noise

Level = Literal["sequence", "token"]
Tail = Literal["drop", "mask", "fill"]
"""What stands behind a response's first end token, on a canvas of fixed length:

drop  nothing; the likelihood's canvas ends there (DARE's BGPO)
mask  masks in every pass, never scored: the bound of the response whatever follows (d1, DiffuCoder score so)
fill  end tokens, hidden and scored like the rest (LLaDA's SFT)
"""


@dataclass(frozen=True)
class DiffusionBatch:
    """One micro-batch as a diffusion loss sees it, with all passes of the estimate or a slice of them.

    terms          (B, n) ELBO terms, or (B, n, L) weighted log-probs of hidden tokens, by the objective's `level`
    old_terms      the same under the policy that sampled, no gradient
    advantages     (B,)
    mask           (B, L)  1.0 where a response token is scored
    num_passes     passes of the whole estimate; n is smaller when the batch is a slice
    canvas_length  tokens of the rollout's canvas, a plain number
    ref_terms      like terms, under the frozen reference, or None
    """

    terms: Tensor
    old_terms: Tensor
    advantages: Tensor
    mask: Tensor
    num_passes: int
    canvas_length: int
    ref_terms: Tensor | None = None

    def passes(self, start: int, stop: int) -> DiffusionBatch:
        """The passes start..stop-1 alone."""
        ref = None if self.ref_terms is None else self.ref_terms[:, start:stop]
        return replace(
            self, terms=self.terms[:, start:stop], old_terms=self.old_terms[:, start:stop], ref_terms=ref
        )


@pydantic.dataclasses.dataclass(frozen=True)
class DiffusionObjective(Objective):
    """Base of the methods that train masked-diffusion models from rewards."""

    level: ClassVar[Level] = "sequence"
    separable: ClassVar[bool] = False
    """Whether `losses` of a slice of passes, summed over slices, is `losses` of all of them."""
    fresh_noise: ClassVar[bool] = False
    """Whether each inner iteration over the same rollout hides other tokens."""
    masked_diffusion: ClassVar[bool] = True
    passes: ClassVar[int] = 1
    """Forward passes of one likelihood estimate, where no setting says it."""
    fixed_on_resume: ClassVar[tuple[str, ...]] = ("tail", "samples", "noise", "t_floor", "canvas_length")
    """Settings that the canvases and the noise of a stored rollout were made with, in whichever method has them."""

    tail: Tail = "drop"
    """what stands behind the first end token"""

    @property
    def num_passes(self) -> int:
        """Forward passes of one likelihood estimate."""
        return self.passes

    def draw_noise(
        self, scored: Tensor, prompt: Tensor, iterations: int, generator: torch.Generator
    ) -> Noise:
        """The noise of one estimate, or of `iterations` estimates in a row where `fresh_noise` is set.

        scored (B, L) bool, prompt (B, P) bool: tokens that are there.
        """
        raise NotImplementedError  # every method hides tokens its own way

    def losses(self, batch: DiffusionBatch) -> Tensor:
        """The loss per response (B,), or per token (B, L), before reduction."""
        raise NotImplementedError  # every method defines its own

    def penalty(self, batch: DiffusionBatch) -> Tensor:
        """Divergence from the reference, shaped like `losses`, to be weighed by the trainer's beta.

        For a sequence: half the squared difference of ELBO terms, mean over passes (k2; its exponential
        cousins overflow at the size of an ELBO). A departure where a method's paper has no KL.
        """
        if batch.ref_terms is None:
            raise ValueError(f"{type(self).__name__}.penalty: the batch has no reference terms")
        return 0.5 * (batch.terms - batch.ref_terms).square().sum(1) / batch.num_passes

    def ratio_bounds(self) -> tuple[float, float] | None:
        """Absolute bounds the ratio is clipped to, for the signal account; None where nothing clips."""
        return None

    def measures(self, batch: DiffusionBatch) -> dict[str, tuple[Tensor, Tensor]]:
        """(sum, count) of scalars worth logging; `batch` holds all passes, without gradient."""
        return {}

    def token_loss(self, batch: TokenBatch) -> Tensor:
        raise NotImplementedError("a diffusion objective reads forward passes: call `losses`")  # other data


@pydantic.dataclasses.dataclass(frozen=True)
class ElboObjective(DiffusionObjective):
    """What BGPO and VRPO-OL share: n ELBO terms per response, group-normalised advantages, a mean over responses."""

    samples: Annotated[int, Ge(1)] = 16
    """n_t"""
    noise: Literal["bernoulli", "count", "complementary"] = "bernoulli"
    """how t and hidden tokens are drawn"""
    t_floor: Annotated[float, Ge(0), Lt(1)] = 1e-3
    """smallest t of bernoulli noise"""
    ddof: Literal[0, 1] = 1
    """std: 1 the sample's, 0 the population's"""

    def __post_init__(self) -> None:
        if self.noise == "complementary" and self.samples % 2:
            raise ValueError(f"noise: complementary draws pairs, so samples must be even, not {self.samples}")

    @property
    def num_passes(self) -> int:
        return self.samples

    def draw_noise(
        self, scored: Tensor, prompt: Tensor, iterations: int, generator: torch.Generator
    ) -> Noise:
        floor = {"floor": self.t_floor} if self.noise == "bernoulli" else {}
        return sample_noise(self.noise, scored, self.samples, generator=generator, **floor)

    def advantages(self, groups: Groups) -> dict[str, Tensor]:
        return {"advantages": normalised_advantages(groups, self.ddof)}

    def reduce(self, losses: Tensor, mask: Tensor, totals: StepTotals) -> Tensor:
        return losses.sum() / totals.num_responses.clamp(min=1.0)


def term_coefficients(
    objective: DiffusionObjective, batch: DiffusionBatch, totals: StepTotals, beta: float = 0.0
) -> Tensor:
    """Derivative of the reduced loss, KL penalty included, with respect to each term. Shaped like the terms."""
    with torch.enable_grad():
        leaf = batch.terms.detach().clone().requires_grad_()
        loss = reduced_loss(objective, replace(batch, terms=leaf), totals, beta)
        if not loss.requires_grad:  # a constant loss
            return torch.zeros_like(leaf)
        (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient


def reduced_loss(
    objective: DiffusionObjective, batch: DiffusionBatch, totals: StepTotals, beta: float = 0.0
) -> Tensor:
    """This batch's share () of the step's loss, beta times the penalty included."""
    losses = objective.losses(batch)
    if beta:
        losses = losses + beta * objective.penalty(batch)
    return objective.reduce(losses, batch.mask, totals)


def normalised_advantages(groups: Groups, ddof: int) -> Tensor:
    """(r - mean) / std of each group; 0 where a group's rewards are equal or unjudged. (P, G).

    No epsilon, so that the published formula holds exactly; `ddof` is what the standard deviation's divisor
    lacks to the number of judged responses.
    """
    rewards = groups.rewards
    count = (~rewards.isnan()).sum(1, keepdim=True)
    centred = group_centered(rewards)
    deviation = (centred.square().sum(1, keepdim=True) / (count - ddof).clamp(min=1)).sqrt()
    flat = degenerate_groups(rewards).unsqueeze(1)
    return torch.where(flat, 0.0, centred / torch.where(flat, 1.0, deviation))


def leave_one_out(groups: Groups) -> Tensor:
    """Reward minus the mean of the group's other judged responses. (P, G); 0 where there is no other."""
    count = (~groups.rewards.isnan()).sum(1, keepdim=True)
    return group_centered(groups.rewards) * count / (count - 1).clamp(min=1)
