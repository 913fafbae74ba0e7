"""Gradient-signal accounting: of all generated tokens, how many carried gradient, and why the rest did not.

What counts as gradient is the derivative of the objective's own token loss, so the account needs no
knowledge of a method. It is about the objective alone: a KL penalty or an entropy bonus pulls on every
loss token, those without a learning signal included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posttrain.objectives.base import Objective, TokenBatch
from posttrain.objectives.logged_rows import token_losses
from posttrain.observe.reasons import CARRIED, CLASSES, LEFT_OUT, PREFIX, REASONS, THROWN_AWAY, WHERE_ANY


@dataclass(frozen=True)
class SignalCounts:
    """Tokens by class, in the order of `CLASSES`; one int64 tensor, so that one all-reduce sums the ranks.

    counts  (len(CLASSES),)  int64
    """

    counts: Tensor

    @classmethod
    def zero(cls, device: torch.device | str | None = None) -> SignalCounts:
        return cls(torch.zeros(len(CLASSES), dtype=torch.int64, device=device))

    @classmethod
    def of(cls, name: str, tokens: int, device: torch.device | str | None = None) -> SignalCounts:
        """So many tokens of one class."""
        return cls(torch.tensor([tokens if name == one else 0 for one in CLASSES], device=device))

    def __add__(self, other: SignalCounts) -> SignalCounts:
        return SignalCounts(self.counts + other.counts)

    def as_dict(self) -> dict[str, int]:
        """Tokens by class. Waits for the device: call it once a step, after the all-reduce."""
        return dict(zip(CLASSES, self.counts.tolist(), strict=True))

    def shares(self) -> dict[str, float]:
        """Share of the generated tokens by class; they sum to 1, or are all 0 when nothing was generated."""
        counts = self.as_dict()
        total = sum(counts.values())
        return {name: count / total if total else 0.0 for name, count in counts.items()}

    def metrics(self, prefix: str = PREFIX) -> dict[str, float]:
        """`signal/NAME` for every class, and `signal/tokens`, the number they are shares of. Those of `WHERE_ANY` are
        named where they are not empty."""
        shares = {
            prefix + name: share for name, share in self.shares().items() if share or name not in WHERE_ANY
        }
        return {**shares, prefix + "tokens": float(sum(self.as_dict().values()))}

    def table(self) -> list[tuple[str, str, int, float]]:
        """(class, what it means, tokens, share), the carried tokens first, empty classes left out."""
        counts, shares = self.as_dict(), self.shares()
        meanings = {CARRIED: "carried gradient", **REASONS}
        return [(name, meanings[name], counts[name], shares[name]) for name in CLASSES if counts[name]]


def token_gradient(objective: Objective, batch: TokenBatch) -> Tensor:
    """Derivative of each token's loss with respect to its log-prob, before mask and reduction. (B, T)."""
    with torch.enable_grad():
        leaf = batch.logprobs.detach().clone().requires_grad_()
        losses = token_losses(objective, replace(batch, logprobs=leaf))
        if not losses.requires_grad:  # a constant loss: no token has gradient
            return torch.zeros_like(leaf)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return gradient


def account(
    *,
    generated: Tensor,
    mask: Tensor,
    advantage: Tensor,
    gradient: Tensor,
    ratio: Tensor,
    bounds: tuple[float | Tensor, float | Tensor] | None = None,
    keep: Tensor | None = None,
    unjudged: Tensor | None = None,
    equal_rewards: Tensor | None = None,
    truncated: Tensor | None = None,
    tool: Tensor | None = None,
    importance: Tensor | None = None,
    left_out: Tensor | None = None,
) -> SignalCounts:
    """Counts every generated token once, under the first of `CLASSES`' reasons that holds.

    generated      (B, T)            1 where the rollout has a token, those of tools included
    mask           (B, T)            the loss mask before `keep`
    advantage      (B, T) or (B, 1)  push at ratio one, see `Objective.effective_advantages`
    gradient       (B, T)            see `token_gradient`
    ratio          (B, T) or (B, 1)  the ratio that is clipped
    bounds         absolute bounds of the ratio, or None where nothing clips
    keep           (B, T) bool       what `Objective.keep` returned
    unjudged       (B, 1) bool       responses whose reward is NaN
    equal_rewards  (B, 1) bool       responses of groups with equal rewards; None: where `advantage` is zero
    truncated      (B, 1) bool       responses cut at the length limit; they count only where `mask` is 0
    tool           (B, T) bool       tokens of tools; they count only where `mask` is 0
    importance     (B, T) or (B, 1)  sampler-to-trainer weights multiplied into the loss
    left_out       (B, 1) bool       what `Objective.left_out` returned
    """
    low, high = bounds if bounds is not None else (0.0, 1.0)
    never = torch.zeros_like(generated, dtype=torch.bool)
    masked = mask == 0
    flat = ~masked & (gradient == 0)
    zero = advantage == 0
    weight = importance if importance is not None else torch.ones_like(gradient)
    conditions = {
        "unjudged": _flag(unjudged, never),
        "equal_rewards": zero if equal_rewards is None else zero & equal_rewards.bool(),
        THROWN_AWAY: never,  # it is in no batch; whoever throws counts it
        "truncated": _flag(truncated, never) & masked,
        "tool": _flag(tool, never) & masked,
        "importance": weight == 0,
        LEFT_OUT: _flag(left_out, never) & ~masked,
        "clipped_low": flat & (advantage < 0) & (ratio < low),
        "clipped_high": flat & (advantage > 0) & (ratio > high),
        "dual_clipped": flat & (advantage < 0) & (ratio > high),
        "curvature": never if keep is None else ~keep.bool(),
        "nonfinite": ~(torch.isfinite(gradient) & torch.isfinite(ratio) & torch.isfinite(weight)),
        "other": masked | flat,
    }
    left = generated.bool()
    counts = []
    for name in REASONS:
        counted = left & conditions[name]
        counts.append(counted.sum())
        left = left & ~counted
    return SignalCounts(torch.stack([left.sum(), *counts]).to(torch.int64))


def account_objective(
    objective: Objective,
    batch: TokenBatch,
    *,
    generated: Tensor,
    keep: Tensor | None = None,
    unjudged: Tensor | None = None,
    equal_rewards: Tensor | None = None,
    truncated: Tensor | None = None,
    tool: Tensor | None = None,
    importance: Tensor | None = None,
) -> SignalCounts:
    """`account` for one micro-batch of an objective; `batch.step` must hold what `observe_step` returned."""
    detached = replace(batch, logprobs=batch.logprobs.detach())
    return account(
        generated=generated,
        mask=batch.mask,
        advantage=objective.effective_advantages(detached),
        gradient=token_gradient(objective, detached),
        ratio=objective.ratio(detached),
        bounds=objective.clip_bounds(detached),
        keep=keep,
        unjudged=unjudged,
        equal_rewards=equal_rewards,
        truncated=truncated,
        tool=tool,
        importance=importance,
        left_out=objective.left_out(detached),
    )


def _flag(value: Tensor | None, never: Tensor) -> Tensor:
    return never if value is None else value.bool()
