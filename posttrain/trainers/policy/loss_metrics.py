"""The numbers of one optimizer step's loss, under TRL's names where TRL has them.

Sums and counts stay on the device over all micro-batches and are reduced over ranks once a step, so that a mean
is over the step's tokens however they were split, and the host waits once.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from posttrain.objectives.base import Objective, TokenBatch
from posttrain.observe.signal import SignalCounts


class LossMetrics:
    """`add` for each micro-batch, `flush` at the end of the optimizer step."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}
        self._per_response: dict[str, list[Tensor]] = {}
        self._signal: SignalCounts | None = None

    def add(
        self,
        objective: Objective,
        method: str,
        batch: TokenBatch,
        *,
        keep: Tensor | None,
        kl: Tensor | None,
        entropies: Tensor,
        policy_loss: Tensor,
        aux_loss: Tensor | None = None,
        signal: SignalCounts,
    ) -> None:
        """One micro-batch. Means are over loss tokens (a per-response ratio: over responses); the objective's own
        scalars, `METHOD/name`, are averaged over micro-batches and ranks, by their loss tokens."""
        mask = batch.mask
        self._add("entropy", *_masked(entropies, mask))
        if kl is not None:
            self._add("kl", *_masked(kl.detach(), mask))
        bounds = objective.clip_bounds(batch)
        if bounds is not None:
            ratio = objective.ratio(batch).detach()
            advantages = objective.effective_advantages(batch)
            low = (ratio < bounds[0]) & (advantages < 0)
            high = (ratio > bounds[1]) & (advantages > 0)
            for name, clipped in (("low", low), ("high", high), ("region", low | high)):
                self._add(f"clip_ratio/{name}_mean", *_masked(clipped.float(), mask))
            self._per_response.setdefault("clip_ratio/low_min", []).append(_response_means(low.float(), mask))
            self._per_response.setdefault("clip_ratio/high_max", []).append(
                _response_means(high.float(), mask)
            )
        if keep is not None:
            self._add("kept_share", *_masked(keep.float(), mask))
        one = torch.ones((), device=mask.device)
        self._add("policy_loss", policy_loss, one)
        if aux_loss is not None:
            self._add("aux_loss", aux_loss.detach(), one)
        tokens = mask.sum().clamp(min=1)
        for name, value in objective.metrics(batch).items():
            share = torch.as_tensor(value, device=mask.device).detach() * tokens
            self._add(f"{method}/{name}", share, tokens)
        self._signal = signal if self._signal is None else self._signal + signal

    def flush(self) -> dict[str, float]:
        """The step's numbers over all ranks, and an empty slate."""
        sums, signal = self._sums, self._signal
        if signal is None:
            return {}
        pairs = torch.stack([torch.stack(pair) for pair in sums.values()])
        # float64 holds token counts exactly beside the sums
        packed = torch.cat([pairs.flatten(), signal.counts.double()])
        packed = self._accelerator.reduce(packed, reduction="sum")
        pairs = packed[: pairs.numel()].view_as(pairs)
        means = (pairs[:, 0] / pairs[:, 1].clamp(min=1.0)).tolist()
        values = dict(zip(sums, means, strict=True))
        values |= SignalCounts(packed[pairs.numel() :].long()).metrics()
        for name, parts in self._per_response.items():
            gathered = torch.as_tensor(self._accelerator.gather(torch.cat(parts)))
            gathered = gathered[~gathered.isnan()]  # a response without loss tokens has no mean
            if gathered.numel():
                values[name] = (gathered.min() if name.endswith("min") else gathered.max()).item()
        self._clear()
        return values

    def _add(self, name: str, total: Tensor, count: Tensor) -> None:
        before = self._sums.get(name)
        total, count = total.double(), count.double()
        self._sums[name] = (total, count) if before is None else (before[0] + total, before[1] + count)


def _masked(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    if values.size(1) == 1:  # one value a response
        return values.sum(), torch.full((), float(values.size(0)), device=values.device)
    return (values * mask).sum(), mask.sum()


def _response_means(values: Tensor, mask: Tensor) -> Tensor:
    if values.size(1) == 1:
        return values.squeeze(1)
    return (values * mask).sum(-1) / mask.sum(-1)
