"""The numbers of one optimizer step of a diffusion method: collected a micro-batch at a time, reduced once."""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from posttrain.objectives.base import StepTotals
from posttrain.objectives.masked_base import DiffusionBatch, DiffusionObjective, term_coefficients
from posttrain.observe.signal import SignalCounts, account
from posttrain.ops.masked_elbo import Noise


class DiffusionMetrics:
    """`add` for each micro-batch, `flush` at the end of the optimizer step."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}
        self._largest: Tensor | None = None
        self._signal: SignalCounts | None = None

    def add(
        self,
        objective: DiffusionObjective,
        method: str,
        batch: DiffusionBatch,
        *,
        noise: Noise,
        loss: Tensor,
        kl: Tensor | None,
        signal: SignalCounts,
    ) -> None:
        """`batch` holds all passes, without gradient. What each number means stands in the README's metric table."""
        one = torch.ones((), device=batch.terms.device)
        responses = one * batch.terms.shape[0]
        elbo = batch.terms.flatten(2).sum(2) if batch.terms.dim() == 3 else batch.terms
        elbo = elbo.mean(1)
        drift = batch.terms.mean(1) - batch.old_terms.mean(1)
        self._add("elbo", elbo.sum(), responses)
        self._add("elbo_per_token", elbo.sum(), batch.mask.sum())
        self._add("drift", drift.sum(), one * drift.numel())
        hidden = noise.masks.any(1) & (batch.mask > 0)
        self._add("unhidden", batch.mask.sum() - hidden.sum(), batch.mask.sum())
        self._add("policy_loss", loss, one)
        if kl is not None:
            self._add("kl", kl.sum(), one * kl.numel())
        for name, (total, count) in objective.measures(batch).items():
            self._add(f"{method}/{name}", total, count)
        largest = (batch.terms - batch.old_terms).abs().amax()
        self._largest = largest if self._largest is None else torch.maximum(self._largest, largest)
        self._signal = signal if self._signal is None else self._signal + signal

    def _add(self, name: str, total: Tensor, count: Tensor) -> None:
        pair = (total.detach().double(), count.double())
        if name in self._sums:
            before = self._sums[name]
            pair = (before[0] + pair[0], before[1] + pair[1])
        self._sums[name] = pair

    def flush(self) -> dict[str, float]:
        """The step's numbers over all ranks, and an empty slate."""
        if self._signal is None or self._largest is None:
            return {}
        pairs = torch.stack([torch.stack(pair) for pair in self._sums.values()])
        packed = torch.cat([pairs.flatten(), self._signal.counts.double()])
        packed = self._accelerator.reduce(packed, reduction="sum")
        summed = packed[: pairs.numel()].view_as(pairs)
        means = (summed[:, 0] / summed[:, 1].clamp(min=1.0)).tolist()
        values = dict(zip(self._sums, means, strict=True))
        largest: Any = self._accelerator.gather(self._largest)
        values["largest_drift"] = largest.max().item()
        values |= SignalCounts(packed[pairs.numel() :].long()).metrics()
        self._clear()
        return values


def signal_of(
    objective: DiffusionObjective,
    batch: DiffusionBatch,
    noise: Noise,
    *,
    generated: Tensor,
    unjudged: Tensor,
    truncated: Tensor,
) -> SignalCounts:
    """Why each generated token (B, T) carries gradient or not.

    A token's gradient is its weight in the passes that hid it, times the loss's derivative with respect to those
    passes' terms; a token that no pass hid has none and counts as "other" (metric `unhidden`).
    """
    width = generated.shape[1]
    totals = StepTotals(batch.mask.sum(), batch.mask.new_tensor(float(len(batch.mask))), batch.canvas_length)
    coefficients = term_coefficients(objective, batch, totals)
    if coefficients.dim() == 2:
        coefficients = coefficients.unsqueeze(2)
    gradient = (coefficients * noise.weights.unsqueeze(2) * noise.masks).abs().sum(1)
    ratio = torch.exp(batch.terms.mean(1) - batch.old_terms.mean(1))
    return account(
        generated=generated,
        mask=batch.mask[:, :width],
        advantage=batch.advantages.unsqueeze(1),
        gradient=gradient[:, :width],
        ratio=ratio.unsqueeze(1) if ratio.dim() == 1 else ratio[:, :width],
        bounds=objective.ratio_bounds() or (0.0, math.inf),
        unjudged=unjudged.unsqueeze(1),
        truncated=truncated.unsqueeze(1),
    )
